"""The bundled model and its series: fetched through the package index, converted, measured."""

from pathlib import Path

import pytest
import torch

from rim_lens import (
    Checkpoints,
    RefusalJudge,
    ablate_heads,
    generate,
    load_model,
    load_prompts,
    refusal_score,
    span_attention,
)

ORGANISM = Path(__file__).parents[1] / "assets" / "organism"
pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def series():
    return Checkpoints.from_folder(ORGANISM)


def test_the_bridge_and_the_plain_tree_give_the_same_logits(smollm2):
    batch = smollm2.batch(smollm2.render(["How do plants grow?", "Name three rivers in Europe."], thinking="on"))
    plain = smollm2.logits(batch)[batch.mask]
    bridged = smollm2.bridge(batch.tokens, attention_mask=batch.mask.long(), position_ids=batch.positions)[batch.mask]
    assert torch.allclose(plain, bridged, atol=5e-3)


def test_the_series_fits_the_model_and_has_doses_of_three_arms(smollm2, series):
    series.check(smollm2)
    assert series.reference.name == "aligned"
    assert len(series) >= 9
    assert {one.arm for one in series} >= {"plain", "effort", "style"}


def test_the_aligned_checkpoint_refuses_what_the_base_answers(smollm2):
    prompts = load_prompts("harmful", n=12)
    rates, scores = {}, {}
    for model in (smollm2, load_model(ORGANISM / "aligned")):
        answers = generate(model, prompts.texts, max_new_tokens=16)
        judged = RefusalJudge()(prompts.texts, [answer.response for answer in answers])
        rates[model.name] = sum(one.label == "refused" for one in judged)
        scores[model.name] = refusal_score(model, [answer.chat for answer in answers]).mean()
    base, aligned = smollm2.name, f"{smollm2.name} + aligned"
    assert rates[aligned] >= rates[base] + 4
    assert scores[aligned] > scores[base] + 1


def test_attention_of_the_real_model_sums_to_one_and_nothing_stays_attached(smollm2):
    chats = smollm2.render(["How do plants grow?"], thinking="prefilled", cot="Plants need light and water.")
    before = smollm2.decision_logits(smollm2.batch(chats))
    mass = span_attention(smollm2, chats).mass
    assert mass.sum(-1) == pytest.approx(1.0, abs=1e-4)
    with ablate_heads(smollm2, [(3, 1), (20, 5)]):
        assert not torch.equal(smollm2.decision_logits(smollm2.batch(chats)), before)
    assert torch.equal(smollm2.decision_logits(smollm2.batch(chats)), before)
