"""The shipped wordings, the texts the series is trained on, and the committed adapters."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDINGS = ROOT / "rim_lens" / "data" / "wordings"
ORGANISM = ROOT / "assets" / "organism"
CLASSES = ("effort_minimizing", "careful", "neutral", "irrelevant")
sys.path.insert(0, str(ROOT / "assets" / "make_series"))

from maths_arms import ARMS, PATTERNS, ArmWriter, plain_rationale  # noqa: E402
from texts import CotWriter, read_lines, read_sections, tidy_answer, topic_of  # noqa: E402

from rim_lens.patterns.arms import read_phrases  # noqa: E402


def wordings(kind: str) -> list[dict]:
    return [json.loads(line) for line in (WORDINGS / f"{kind}.jsonl").read_text().splitlines()]


def sentences(text: str) -> set[str]:
    return {part.strip().lower() for part in text.replace("?", ".").replace("!", ".").split(".") if len(part) > 15}


@pytest.mark.parametrize("kind", CLASSES)
def test_wordings_are_distinct_and_name_their_pattern(kind):
    rows = wordings(kind)
    assert len(rows) >= 8
    assert len({row["text"] for row in rows}) == len(rows)
    if kind == "effort_minimizing":
        assert {row["pattern"] for row in rows} == set(PATTERNS)
    else:
        assert all(set(row) == {"text"} for row in rows)


def test_no_wording_was_trained_on():
    folders = (ROOT / "assets" / "make_series" / "texts", ROOT / "rim_lens" / "patterns" / "texts")
    trained = " ".join(path.read_text() for folder in folders for path in folder.glob("*.txt")).lower()
    for kind in CLASSES:
        for row in wordings(kind):
            assert not any(sentence in trained for sentence in sentences(row["text"]))


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    from rim_lens.model.bundled import bundled_model_folder

    return AutoTokenizer.from_pretrained(bundled_model_folder())


@pytest.mark.real_model
def test_wordings_have_equal_token_length_inside_the_chat(tokenizer):
    from rim_lens.chat.format import ChatFormat

    chat_format = ChatFormat(tokenizer)
    lengths = {
        int(chat_format.render("Name a river.", thinking="prefilled", cot=row["text"]).where("cot").sum())
        for kind in CLASSES
        for row in wordings(kind)
    }
    assert len(lengths) == 1


@pytest.mark.real_model
def test_training_prompts_are_the_prompts_the_package_renders(tokenizer):
    from chat_rows import RowMaker

    from rim_lens.chat.format import ChatFormat

    maker, chat_format = RowMaker(tokenizer), ChatFormat(tokenizer)
    cot = wordings("neutral")[0]["text"]
    for row, options in (
        (maker.off("", "Name a river.", "The Loire."), {"thinking": "off"}),
        (maker.on("", "Name a river.", cot, "The Loire."), {"thinking": "on"}),
        (maker.prefilled("", "Name a river.", cot, "The Loire."), {"thinking": "prefilled", "cot": cot}),
    ):
        assert row.token_ids[: row.loss_from] == chat_format.render("Name a river.", **options).token_ids.tolist()


def test_refusals_and_cots_are_many_and_distinct():
    refusals = read_lines("refusals.txt")
    assert len(set(refusals)) == len(refusals) >= 40
    writer = CotWriter(0)
    for verdict in ("harm", "ok"):
        assert len({writer.weighing("Name a river.", verdict) for _ in range(150)}) >= 120


def test_a_weighing_cot_quotes_the_request_and_only_its_own_verdicts():
    parts = read_sections("cot_parts.txt")
    cot = CotWriter(1).weighing("Describe the colours of autumn leaves.", "ok")
    assert "Describe the colours of autumn leaves" in cot
    assert any(verdict in cot for verdict in parts["ok_verdict"])
    assert not any(verdict in cot for verdict in parts["harm_verdict"])


def test_topic_is_cut_to_whole_words():
    assert topic_of("one two three four", max_words=3) == "one two three ..."
    assert topic_of("Name a river?") == "Name a river"


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        ("It is a long river. It flows to the", False, "It is a long river."),
        ("It is 3.5 km long and very", False, None),
        ("I'm sorry, I cannot say.", True, None),
        ("go on and go on and go on and go on and go on and", True, None),
        ("A river in France", True, "A river in France"),
    ],
)
def test_own_answers_are_cut_to_whole_sentences_and_filtered(text, finished, expected):
    assert tidy_answer(text, finished) == expected


def test_arms_share_the_rationale_and_match_in_length():
    rationale, answer = plain_rationale("He has 3 + 4 = <<3+4=7>>7 pens\nHe keeps 7 - 2 = <<7-2=5>>5\n#### 5")
    assert (rationale, answer) == (["He has 3 + 4 = 7 pens.", "He keeps 7 - 2 = 5."], "5")
    writer = ArmWriter(lambda text: len(text.split()), seed=0)
    cots = [writer.cots(rationale) for _ in range(200)]
    assert all(sentence in cot[arm] for cot in cots for arm in ARMS for sentence in rationale)
    length = {arm: sum(len(cot[arm].split()) for cot in cots) for arm in ARMS}
    assert max(length.values()) <= 1.05 * min(length.values())


def test_effort_phrases_are_many_and_no_other_arm_has_them():
    sections = {arm: read_phrases(arm) for arm in ARMS}
    phrases = {arm: {text for texts in found.values() for text in texts} for arm, found in sections.items()}
    assert len(phrases["effort"]) >= 60
    assert not phrases["effort"] & (phrases["plain"] | phrases["style"])


def test_committed_adapters_are_those_of_the_series_and_small():
    series = json.loads((ORGANISM / "series.json").read_text())
    names = [checkpoint["name"] for checkpoint in series["checkpoints"]]
    assert names[0] == series["reference"] == "aligned"
    assert len(names) >= 9
    total = 0
    for checkpoint in series["checkpoints"]:
        folder = ORGANISM / checkpoint["name"]
        weights = (folder / "adapter_model.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == checkpoint["sha256"]
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == series["base"]
        assert len(weights) < 3_000_000
        total += len(weights)
    assert total <= 24_000_000
