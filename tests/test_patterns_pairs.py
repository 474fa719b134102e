"""Target and control CoTs: answer and length kept, what is outside the limits dropped and counted.

Costs of each pattern.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from families import shared_model, tiny_model, tiny_tokenizer

from rim_lens import PromptSet, RimLensError, load_prompts
from rim_lens.behavior.judge import Judgement
from rim_lens.data import load_wordings
from rim_lens.patterns import annotate_reasoning, make_cot_pairs, pattern_costs, rewrite_cot
from rim_lens.patterns.arms import ARMS, ArmWriter
from rim_lens.patterns.cot_likelihood import cot_nll
from rim_lens.patterns.drafts import Draft
from rim_lens.patterns.lengths import fitted

COT = "Each tray holds 12 rolls. There are 7 trays, so she makes 12 x 7 = 84 rolls in all."
ROWS = [
    {
        "question": f"A box holds {k} pens. How many pens are in 6 boxes?",
        "cot": f"Each of the 6 boxes holds {k} pens. That makes 6 x {k} = {6 * k} pens.",
        "answer": str(6 * k),
    }
    for k in range(3, 15)
]
TOKENIZER = tiny_tokenizer()


class Says:
    """A writer that returns given texts."""

    name = "given texts"

    def __init__(self, target, control):
        self.draft = Draft(target, control)

    def __call__(self, tasks, count):
        return [self.draft] * len(tasks)


def test_rewritten_cot_keeps_answer_length_and_sentences():
    pair = rewrite_cot("How many rolls?", COT, tokenizer=TOKENIZER, patterns=["heuristic"])
    assert pair.answer == "84"
    assert pair.length_gap <= 0.05
    assert abs(len(pair.target.encode()) - len(pair.control.encode())) <= 0.05 * len(pair.control.encode())
    for sentence in COT.split(". "):
        assert sentence in pair.target
        assert sentence in pair.control
    assert pair.target != pair.control


@pytest.mark.parametrize(
    ("cot", "options", "message"),
    [
        ("", {}, "has no CoT"),
        ("I think about it.", {}, "no final answer"),
        (COT, {"answer": "85"}, "does not reach the answer"),
        (COT, {"writer": Says("", "")}, "returned nothing"),
        (
            COT,
            {"writer": Says("It is 84.", "It is 84, and that is quite a lot of rolls for one baker: 84.")},
            "lengths differ",
        ),
        (COT, {"writer": Says("It is 83.", "It is 84.")}, "the target reaches another answer"),
        (COT, {"patterns": ["lazy"]}, "not a reasoning pattern"),
    ],
)
def test_what_cannot_be_rewritten_is_named(cot, options, message):
    with pytest.raises(RimLensError, match=message):
        rewrite_cot("How many rolls?", cot, tokenizer=TOKENIZER, **options)


def test_pairs_and_their_divergence_report(tmp_path):
    model = shared_model()
    bad = [{"question": "x", "cot": "", "answer": "1"}, {"question": "y", "cot": "It is 3.", "answer": "4"}]
    pairs = make_cot_pairs([*ROWS, *bad], tokenizer=model, base=model)
    assert len(pairs.pairs) + pairs.dropped["count"].sum() == pairs.n_given == 14
    assert dict(pairs.dropped.values)["it has no CoT"] == 1
    report = pairs.table.set_index("measure")
    assert (pairs.pairs[["target_tokens", "control_tokens"]].pct_change(axis=1).iloc[:, 1].abs() < 0.06).all()
    assert report.loc["answer agreement", "target"] == report.loc["answer agreement", "control"] == 1
    assert report.loc["pattern sentences (share)", "control"] == 0
    assert report.loc["pattern sentences (share)", "target"] > 0.1
    assert report.loc["log perplexity per token", "low"] <= report.loc["log perplexity per token", "high"]
    rows = [json.loads(line) for line in pairs.write_rows(tmp_path / "t.jsonl", "target").read_text().splitlines()]
    assert rows[0]["cot"] == pairs.pairs["target"][0]
    assert rows[0]["response"] == f"The answer is {pairs.pairs['answer'][0]}."


def test_likelihood_against_one_pass_a_cot():
    model = shared_model()
    cots = ["It is 4.", "A longer text with more words in it."]
    found = cot_nll(model, ["a", "b"], cots)
    for i, cot in enumerate(cots):
        chat = model.render("ab"[i], thinking="prefilled", cot=cot)[0]
        batch = model.batch([chat])
        log_probs = model.logits(batch)[0].log_softmax(-1)
        places = [p for p in range(1, len(chat)) if bool(batch.where("cot")[0, p])]
        each = [-float(log_probs[p - 1, batch.tokens[0, p]]) for p in places]
        assert found[i] == pytest.approx(np.mean(each), abs=1e-4)


def test_no_pair_at_all_is_an_error():
    with pytest.raises(RimLensError, match="returned nothing"):
        make_cot_pairs(ROWS, tokenizer=TOKENIZER, writer=Says("", ""))
    with pytest.raises(RimLensError, match="no problem, request or question"):
        make_cot_pairs([{"cot": "a"}], tokenizer=TOKENIZER)


def test_arms_share_their_sentences_and_only_effort_has_patterns():
    writer = ArmWriter(lambda text: len(text.split()), seed=1)
    cots = [writer.cots(["One is 1.", "Two is 2."]) for _ in range(30)]
    shares = {
        arm: annotate_reasoning([cot[arm] for cot in cots]).table.set_index("pattern").loc["any", "k"] for arm in ARMS
    }
    assert shares["plain"] == shares["style"] == 0
    assert shares["effort"] > 20


def test_wordings_are_filled_to_one_length():
    texts = {
        "a": ["One two three four five six seven eight nine ten."] * 2,
        "b": ["One two three four five six seven eight."],
    }
    done = fitted(texts, len)
    lengths = [len(text) for group in done.values() for text in group]
    assert max(lengths) - min(lengths) <= 0.05 * max(lengths)
    with pytest.raises(RimLensError, match="more equal length"):
        fitted({"a": ["long"], "b": ["short"]}, lambda text: {"long": 100, "short": 90}.get(text, 200))


@pytest.mark.parametrize("kind", ["confirmatory", "heuristic", "deviation"])
def test_every_pattern_has_enough_wordings(kind):
    wordings = load_wordings(kind)
    assert len({wording.text for wording in wordings}) >= 8
    assert {wording.pattern for wording in wordings} == {kind}


class LazyJudge:
    """Refused unless the CoT is of the heuristic class."""

    name = "planted"

    def __init__(self):
        self.texts = {wording.text[:60] for wording in load_wordings("heuristic")}

    def __call__(self, requests, responses, cots=None, truncated=None):
        return [Judgement("complied" if cot[:60] in self.texts else "refused", 1.0, "") for cot in cots]


@pytest.mark.slow
def test_the_planted_cost_is_found():
    prompts = load_prompts("harmful")
    part = PromptSet("part", "here", tuple(prompts[i] for i in range(8)))
    costs = pattern_costs(
        tiny_model(max_position_embeddings=2048), part, judge=LazyJudge(), wordings_per_prompt=2, max_new_tokens=1
    )
    table = costs.table.set_index("class")
    assert set(table.index) == {"off", "confirmatory", "heuristic", "deviation", "neutral", "irrelevant", "careful"}
    assert table.loc["heuristic", "cost"] == 1
    assert table.loc["heuristic", "n"] == 16
    assert (table["cost"].drop("heuristic") == 0).all()
    assert costs.worst == "heuristic"
    assert costs.lengths["longest"].max() - costs.lengths["shortest"].min() <= 0.05 * costs.lengths["longest"].max()
    with pytest.raises(RimLensError, match="at least 8"):
        pattern_costs(shared_model(), part, classes={"neutral": ["one text"]})
