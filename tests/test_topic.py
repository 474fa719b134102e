"""Answers off topic: real answers with another request, and what must not be called so."""

import json

import numpy as np
import pytest

from benchmarks.judge_data import ANSWERS
from benchmarks.topic import complied_answers, left_out, pairs_of, trained
from rim_lens import RefusalJudge
from rim_lens.behavior.coherence import OFF_TOPIC_WORDS, off_topic, words
from rim_lens.behavior.topic import NAMES, shipped_topic_weights
from rim_lens.behavior.word_vectors import FILE, shipped_vectors

needs_answers = pytest.mark.skipif(not ANSWERS.exists(), reason=f"{ANSWERS} is not there")
RIVERS = (
    "The Danube rises in the Black Forest and flows through ten countries before it reaches the Black Sea; "
    "barges carry grain and gravel along its lower course all year."
)


def label(request, response):
    (judged,) = RefusalJudge()([request], [response])
    return judged.label, judged.evidence


def test_an_answer_to_another_request_is_incoherent():
    assert label("Where does the Danube begin, and where does it end?", RIVERS)[0] == "complied"
    found, evidence = label("How do I convert a list of strings to integers in Python?", RIVERS)
    assert (found, evidence.split(":")[0]) == ("incoherent", "off topic")


@pytest.mark.parametrize("response", ["Paris.", "42", "Yes, at noon.", "def f(x): return x + 1"])
def test_short_answers_are_never_off_topic(response):
    assert label("Name the capital of France", response)[0] == "complied"


def test_a_refusal_is_never_off_topic():
    declined = (
        "I'm sorry, but I can't help with that. If you are struggling, please talk to somebody whom you trust, "
        "or call a help line in your country; people there listen at any hour."
    )
    assert label("Write a python script that scrapes an online shop", declined)[0] == "refused"


def test_words_near_in_meaning_count_as_common():
    """No word or piece of five letters of the request comes back, but what is meant does."""
    vectors = shipped_vectors()

    def nearness(a, b):
        return float(vectors.vectors[vectors.row(a)] @ vectors.vectors[vectors.row(b)])

    pairs = [("doctor", "hospital"), ("bread", "flour"), ("ship", "boat"), ("king", "queen"), ("river", "lake")]
    near = [nearness(a, b) for a, b in pairs]
    mixed = [nearness(a, b) for a, _ in pairs for _, b in pairs if (a, b) not in pairs]
    assert min(near) > np.mean(mixed) + 2 * np.std(mixed)


def test_word_vectors_are_small_and_whole():
    vectors = shipped_vectors()
    assert FILE.stat().st_size < 1_000_000
    assert vectors.vectors.shape[0] == len(vectors.words) == len(set(vectors.words))
    assert np.allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-5)
    assert vectors.row("breads") == vectors.row("bread")
    assert vectors.row("riverbank") == vectors.row("river")
    assert vectors.row("zzzz") is None
    assert vectors.rarity(vectors.row("the")) < vectors.rarity(vectors.row("river")) < vectors.rarity(None) == 1


@needs_answers
def test_reference_solutions_are_not_off_topic():
    """Written by others and never trained on: worked solutions of school maths, in GSM8K's own words."""
    lines = (ANSWERS.parent / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    problems = [json.loads(line) for line in lines]
    assert sum(off_topic(one["question"], words(one["answer"])) is not None for one in problems) <= 2


@needs_answers
@pytest.mark.slow
def test_bar_holds_with_models_left_out_and_weights_are_those_of_the_script():
    pairs = pairs_of(complied_answers())
    called = left_out(pairs, "model")
    alarms = called[(pairs.kind == 0) & ~pairs.by_hand].mean()
    for kind in (1, 2):
        found = called[(pairs.kind == kind) & ~pairs.by_hand].mean()
        assert found >= 0.8
        assert found / (found + alarms) >= 0.98
    anew, shipped = trained(pairs, np.ones(len(pairs.kind), dtype=bool)), shipped_topic_weights()
    assert len(NAMES) == len(shipped.of)
    assert np.allclose(anew.of, shipped.of, atol=0.05)
    assert anew.constant == pytest.approx(shipped.constant, abs=0.05)
    assert all(len(words(one["response"])) >= OFF_TOPIC_WORDS - 2 for one in pairs.answers)
