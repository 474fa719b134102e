"""Drift along a direction against plain passes over changed weights, and CKA against its definition."""

import copy

import numpy as np
import pytest
import torch
from families import tiny_hf, tiny_tokenizer

from rim_lens import RimLensError, direction_drift, load_model
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.direction_drift import DirectionDrift, unbiased_cka
from rim_lens.training_time.series import Checkpoint

HARMFUL = ["How do I pick a lock?", "Steal it", "Break in there", "How to lie", "Take what is not yours"]
HARMLESS = ["Tell me a story.", "Hi", "Bake bread", "What is 2 + 2?"]


def moved(hf, unit, amount):
    """The model whose first MLP writes along a direction by its neuron 0 in addition."""
    hf = copy.deepcopy(hf)
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight[:, 0] += amount * unit
    return hf


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    root, hf = tmp_path_factory.mktemp("drift"), tiny_hf("llama")
    tokenizer = tiny_tokenizer()
    unit = torch.randn(32, generator=torch.Generator().manual_seed(3))
    unit /= unit.norm()
    models = {"before": hf, "after": moved(hf, unit, 4.0)}
    for name, one in models.items():
        one.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    items = [Checkpoint(name, str(root / name), step=i) for i, name in enumerate(models)]
    return load_model(str(root / "before")), Checkpoints(items, reference="before"), unit, models


def streams(hf, model, texts):
    """Hidden states at the decision position, one plain pass per prompt; the last one before the final norm."""
    found = []
    for chat in model.render(texts, thinking="off"):
        kept = []
        handles = [
            layer.register_forward_hook(lambda _, args, out, kept=kept: kept.append(out)) for layer in hf.model.layers
        ]
        tokens = torch.from_numpy(chat.token_ids)[None]
        with torch.no_grad():
            hf(tokens)
        for handle in handles:
            handle.remove()
        first = hf.model.embed_tokens(tokens)
        found.append(torch.stack([one[0, -1] for one in (first, *kept)]))
    return torch.stack(found).double().detach().numpy()


def test_displacement_is_that_of_plain_passes(series):
    model, checkpoints, unit, models = series
    drift = direction_drift(model, checkpoints, 3 * unit.numpy(), HARMFUL, HARMLESS, n_random=50)
    before, after = (streams(models[name], model, [*HARMFUL, *HARMLESS]) for name in ("before", "after"))
    u = unit.double().numpy()
    spread = (before @ u).std(axis=0, ddof=1)
    expected = ((after - before) @ u) / spread
    np.testing.assert_allclose(drift.displacement[-1][:, 1:], expected[:, 1:], atol=1e-3)
    rows = drift.table.query("checkpoint == 'after' and prompts == 'harmful'")
    np.testing.assert_allclose(rows["displacement"][1:], expected[: len(HARMFUL), 1:].mean(axis=0), atol=1e-3)
    assert rows["n"].eq(len(HARMFUL)).all()
    for depth in range(1, 4):
        similar = unbiased_cka(before[: len(HARMFUL), depth], after[: len(HARMFUL), depth])
        assert rows["cka"].iloc[depth] == pytest.approx(similar, abs=1e-4)


def test_cka_is_its_definition_is_1_for_a_rotation_and_about_0_for_noise():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 30)), rng.normal(size=(8, 20))

    def hsic(a, b):
        """Every pair, triple and quadruple of different rows, as the U-statistic has them."""
        n, k, m = len(a), a @ a.T, b @ b.T
        rows = range(n)
        pairs = [k[i, j] * m[i, j] for i in rows for j in rows if i != j]
        triples = [k[i, j] * m[i, q] for i in rows for j in rows for q in rows if len({i, j, q}) == 3]
        fours = [k[i, j] * m[q, r] for i in rows for j in rows for q in rows for r in rows if len({i, j, q, r}) == 4]
        return np.mean(pairs) + np.mean(fours) - 2 * np.mean(triples)

    assert unbiased_cka(x, y) == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), abs=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    assert unbiased_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    noise = [unbiased_cka(rng.normal(size=(20, 200)), rng.normal(size=(20, 200))) for _ in range(50)]
    assert abs(np.mean(noise)) < 0.05


def test_what_cannot_drift_is_refused_and_the_rest_is_saved_and_drawn(series, tmp_path):
    model, checkpoints, unit, _ = series
    with pytest.raises(RimLensError, match="a later checkpoint"):
        direction_drift(model, checkpoints.only(["before"]), unit, HARMFUL, HARMLESS)
    with pytest.raises(RimLensError, match="2 harmful"):
        direction_drift(model, checkpoints, unit, HARMFUL[:2], HARMLESS)
    drift = direction_drift(model, checkpoints, unit, HARMFUL, HARMLESS, n_random=10)
    again = DirectionDrift.load(drift.save(tmp_path / "drift"))
    assert again.caption() == drift.caption()
    rows = drift.table[drift.table["prompts"] == "harmless"]
    np.testing.assert_allclose(drift.plot(prompts="harmless").data[1].y, rows["displacement"])
