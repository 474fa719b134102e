"""Arms of fine-tuning over seeds against means, paired tests and a two-way analysis of variance computed here.

Maths against a loop.
"""

import json

import numpy as np
import pytest
import torch
from families import tiny_hf, tiny_model, tiny_tokenizer
from made_arms import COMPLIES, LEARNED, made_arms, made_checkpoints, made_maths
from made_results import made_series
from scipy import stats as scipy_stats

from rim_lens import RimLensError, load_prompts
from rim_lens.data.schemas import Prompt, PromptSet
from rim_lens.stats import benjamini_hochberg, bootstrap_crossed_difference, paired_difference
from rim_lens.training_time import compare_arms, series_maths
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.words import LIKELIHOOD


def cells(series, arm, step, measure="complied"):
    """Outcomes [prompt, seed] of an arm."""
    rows = series.answers.merge(series.table[["checkpoint", "arm", "step", "seed"]], on="checkpoint")
    rows = rows[(rows["arm"] == arm) & (rows["step"] == step)]
    return np.stack(
        [(g.sort_values("prompt")["label"] == measure).to_numpy(float) for _, g in rows.groupby("seed")], axis=1
    )


def row_of(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_changes_are_means_over_prompts_and_seeds():
    series = made_arms()
    found = compare_arms(series, made_maths())
    before = (series.answers.query("checkpoint == 'start'")["label"] == "complied").mean()
    for arm in ("plain", "effort", "style"):
        row = row_of(found.table, arm=arm, step=18, measure="complied")
        after = cells(series, arm, 18)
        assert row["after"] == pytest.approx(after.mean())
        assert row["change"] == pytest.approx(after.mean() - before)
        assert row["low"] < row["change"] < row["high"]
        assert row["after_low"] < row["after"] < row["after_high"]
        assert (row["n"], row["n_seeds"]) == (60, 3)
        assert row_of(found.table, arm=arm, step=9, measure=LIKELIHOOD)["change"] == pytest.approx(
            LEARNED[arm] - LEARNED["start"], abs=0.05
        )
    for _, rows in found.table.groupby("measure"):
        np.testing.assert_allclose(rows["q"], benjamini_hochberg(rows["p"].to_numpy()))


@pytest.mark.slow
def test_contrasts_pair_seeds_and_prompts():
    series = made_arms(n=200, seed=2)
    found = compare_arms(series)
    row = row_of(found.contrasts, a="effort", b="plain", step=18, measure="complied")
    difference = cells(series, "effort", 18) - cells(series, "plain", 18)
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["difference"] == pytest.approx(0.9 * (COMPLIES["effort"] - COMPLIES["plain"]), abs=0.1)
    assert row["low"] > 0
    assert row["p"] < 0.05
    same = row_of(found.contrasts, a="plain", b="style", step=18, measure="complied")
    assert same["low"] < 0 < same["high"]
    assert len(found.contrasts) == 3 * 2 * 3  # pairs, steps, labels


@pytest.mark.slow
def test_seeds_that_disagree_leave_few_degrees_of_freedom():
    """Where seeds vary far more than prompts, p is that of Student's t over the three seeds' means."""
    series = made_arms(n=200, spread=0.3, seed=4)
    row = row_of(compare_arms(series).table, arm="effort", step=18, measure="complied")
    before = (series.answers.query("checkpoint == 'start'")["label"] == "complied").mean()
    by_seed = cells(series, "effort", 18).mean(axis=0) - before
    assert by_seed.std() > 0.15
    t = scipy_stats.ttest_1samp(by_seed, 0)
    assert row["p"] == pytest.approx(t.pvalue, rel=0.35)
    low, high = t.confidence_interval()
    assert row["high"] - row["low"] > 0.6 * (high - low)


def test_one_seed_is_compared_by_prompts_alone():
    series = made_arms(seeds=(0,))
    found = compare_arms(series, made_maths(seeds=(0,), solved=True))
    row = row_of(found.table, arm="effort", step=9, measure="complied")
    before = (series.answers.query("checkpoint == 'start'")["label"] == "complied").to_numpy()
    paired = paired_difference(cells(series, "effort", 9)[:, 0].astype(bool), before)
    assert (row["change"], row["low"], row["high"], row["p"]) == pytest.approx(
        (paired.value, paired.interval.low, paired.interval.high, paired.p)
    )
    assert row["n_seeds"] == 1
    assert "one training per arm" in found.caption()
    assert set(found.table["measure"]) == {"refused", "complied", "incoherent", LIKELIHOOD, "maths solved"}


def test_what_cannot_be_compared_is_said():
    with pytest.raises(RimLensError, match="other checkpoints"):
        compare_arms(made_arms(), made_maths(seeds=(1, 2)))


def test_checkpoints_without_arms_count_one_by_one():
    found = compare_arms(made_series(steps_known=False))
    assert list(found.table["arm"].unique()) == ["plain-20", "plain-80", "effort-20", "effort-80"]
    assert found.table["step"].isna().all()
    assert found.contrasts.empty


def test_a_result_comes_back_as_it_was_saved(tmp_path):
    from rim_lens import load_result

    found = compare_arms(made_arms(), made_maths())
    found.save(tmp_path / "arms")
    again = load_result(tmp_path / "arms")
    assert again.caption() == found.caption()
    assert again.table.equals(found.table)


def worked(n=4):
    rows = [
        Prompt(f"Add {i} and 2.", None, f"p{i}", answer=str(i + 2), rationale=f"{i} + 2\nis {i + 2}") for i in range(n)
    ]
    return PromptSet("worked", "made", tuple(rows))


def by_hand(model, request, cot, response, thinking):
    """Mean log-probability of what the assistant writes, from one plain pass over all its tokens."""
    (chat,) = model.render(request, thinking=thinking)
    given = [int(token) for token in chat.token_ids]
    pieces = [response] if thinking == "off" else [cot, model.chat_format.tags.close, response]
    learned = [token for piece in pieces for token in model.encode(piece)]
    with torch.no_grad():
        logits = model.hf(torch.tensor([given + learned])).logits[0].double().log_softmax(-1)
    places = range(len(given) - 1, len(given) + len(learned) - 1)
    return np.mean([float(logits[place, token]) for place, token in zip(places, learned, strict=True)])


def test_likelihood_of_right_answers_is_that_of_a_plain_pass():
    model = tiny_model("llama")
    series = Checkpoints([])
    found = series_maths(model, series, worked(), generated=False, batch_size=3)
    assert found.worked
    for i, value in enumerate(found.answers["likelihood"]):
        expected = by_hand(model, f"Add {i} and 2.", f"{i} + 2 is {i + 2}", f"The answer is {i + 2}.", "on")
        assert value == pytest.approx(expected, abs=1e-4)
    plain = PromptSet("plain", "made", tuple(Prompt(p.text, None, p.id, answer=p.answer) for p in worked()))
    found = series_maths(model, series, plain, generated=False)
    assert not found.worked
    for i, value in enumerate(found.answers["likelihood"]):
        assert value == pytest.approx(by_hand(model, f"Add {i} and 2.", "", f"The answer is {i + 2}.", "off"), abs=1e-4)


def test_maths_over_a_series_is_compared_with_the_reference(tmp_path):
    folder = tmp_path / "tiny"
    tiny_hf("llama").save_pretrained(folder / "a")
    torch.manual_seed(5)
    other = tiny_hf("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    other.save_pretrained(folder / "b")
    tiny_tokenizer().save_pretrained(folder / "a")
    document = {
        "reference": "a",
        "base": str(folder / "a"),
        "checkpoints": [{"name": "a"}, {"name": "b", "arm": "x", "step": 3}],
    }
    (folder / "series.json").write_text(json.dumps(document))
    series = Checkpoints.from_folder(folder)
    model = series.open(device="cpu")
    found = series_maths(model, series, worked(12), max_new_tokens=3, cot_budget=3)
    a, b = (rows["likelihood"].to_numpy() for _, rows in found.answers.groupby("checkpoint"))
    row = row_of(found.table, checkpoint="b")
    assert row["change"] == pytest.approx((b - a).mean())
    assert row["low"] <= row["rate"] <= row["high"]
    assert found.table.iloc[0]["change"] == 0
    assert (row["solved"], row["n"]) == (0, 12)
    with pytest.raises(RimLensError, match="have no answer"):
        series_maths(model, series, load_prompts("harmful", n=4))


def test_checkpoints_keep_their_seeds():
    assert [one.seed for one in made_checkpoints()][:3] == [None, 1, 1]


def test_seeds_that_agree_by_chance_are_known_no_better_than_chance_allows():
    rng, found, bounded = np.random.default_rng(0), 0, 0
    for _ in range(60):
        a, b = ((rng.random((60, 3, 1)) < 0.1).astype(float) for _ in range(2))
        difference = (a - b).mean(axis=2)
        found += bootstrap_crossed_difference(difference, None, n_resamples=50).p <= 0.05
        bounded += bootstrap_crossed_difference(difference, None, n_resamples=50, answers=(a, b)).p <= 0.05
        one = bootstrap_crossed_difference(difference, None, n_resamples=50, answers=(a, b)).interval
        assert one.high - one.low > 0.05
    assert bounded <= found
    assert bounded <= 8
