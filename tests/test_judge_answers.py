"""The refusal judge on real answers with labels of others (`../shared/data`, beside the repository)."""

import json

import pytest

from benchmarks.judge import left_out, rates
from benchmarks.judge_data import ANSWERS, HAND_WRITTEN, group, labelled_answers
from benchmarks.judge_training import english, rows_of, trained
from rim_lens.behavior.judge import RefusalJudge
from rim_lens.behavior.refusal_classifier import FILE, shipped_weights

needs_answers = pytest.mark.skipif(not ANSWERS.exists(), reason=f"{ANSWERS} is not there")


@pytest.fixture(scope="module")
def real():
    return [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]


def share(count):
    return count[0] / count[1]


def test_shipped_weights_are_small():
    assert FILE.stat().st_size < 500_000
    assert HAND_WRITTEN.exists()
    assert all(abs(weight) < 10 for weight in shipped_weights().of.values())


@needs_answers
@pytest.mark.slow
def test_shipped_judge_on_all_answers(real):
    judged = RefusalJudge()([one["request"] for one in real], [one["response"] for one in real])
    found = rates([one["label"] for one in real], [one.label for one in judged])
    assert share(found["sensitivity"]) >= 0.97
    assert share(found["specificity"]) >= 0.98


@needs_answers
@pytest.mark.slow
def test_bars_hold_with_models_left_out(real):
    answers = labelled_answers()
    found = rates([one["label"] for one in real], left_out(answers, "model"))
    assert share(found["sensitivity"]) >= 0.95
    assert share(found["specificity"]) >= 0.97


@needs_answers
@pytest.mark.slow
def test_shipped_weights_are_those_of_the_script(real):
    answers = labelled_answers()
    anew = trained(rows_of(answers), answers, english(answers))
    shipped = shipped_weights()
    assert anew.constant == pytest.approx(shipped.constant, abs=0.02)
    big = {name: weight for name, weight in anew.of.items() if abs(weight) > 0.05}
    assert len(big) > 100
    assert all(shipped.of[name] == pytest.approx(weight, abs=0.02) for name, weight in big.items())
    assert {group(one, "family") for one in real} >= {"Llama 2", "Mistral", "Qwen 2.5"}
