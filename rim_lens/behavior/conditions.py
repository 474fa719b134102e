"""The thinking conditions under which a model is asked: off, its own CoT, and prefilled CoTs of several classes.

A prefilled class has several wordings of equal length. Each prompt gets `wordings_per_prompt` of them in rotation, so
that every wording is seen with equally many prompts and no figure rests on one text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from rim_lens.behavior.generate import Generation, generate
from rim_lens.behavior.judge import HARM, Judge, RefusalJudge, filled_by
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompt
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.stats import Outcomes, wilson


@dataclass(frozen=True)
class Condition:
    """One way of thinking; `wordings` are the CoT texts of a prefilled class, empty otherwise."""

    name: str
    thinking: Thinking
    wordings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """One prompt asked in one condition; `wording` is the index of its CoT text, -1 where there is none.

    `sample` from 0.
    """

    prompt: int
    wording: int
    sample: int = 0


def conditions(thinking: str | Sequence[str], prefilled: str | Sequence[str]) -> list[Condition]:
    """Conditions by name: thinking modes, then classes of prefilled wordings."""
    from rim_lens.data.prompts import load_wordings

    thinking = [thinking] if isinstance(thinking, str) else thinking
    prefilled = [prefilled] if isinstance(prefilled, str) else prefilled
    for mode in thinking:
        if mode not in ("off", "on"):
            raise RimLensError(f"{mode!r} is not a thinking mode here; use 'off', 'on', and prefilled= for given CoTs.")
    plain = [Condition(mode, mode) for mode in thinking]  # type: ignore[arg-type]
    given = [Condition(kind, "prefilled", tuple(wording.text for wording in load_wordings(kind))) for kind in prefilled]
    return plain + given


def rotation(n_prompts: int, n_wordings: int, wordings_per_prompt: int) -> list[Asked]:
    """Which prompt gets which wording: the r-th round gives prompt i wording i + r, modulo their number."""
    if n_wordings == 0:
        return [Asked(i, -1) for i in range(n_prompts)]
    rounds = min(wordings_per_prompt, n_wordings)
    return [Asked(i, (i + r) % n_wordings) for r in range(rounds) for i in range(n_prompts)]


def ask(
    model: LensModel,
    prompts: Sequence[Prompt],
    condition: Condition,
    *,
    wordings_per_prompt: int = 1,
    samples: int = 1,
    **options: Any,
) -> tuple[list[Asked], list[Generation]]:
    """Generate every prompt's answers in one condition, `samples` for each wording; options as in `generate`."""
    asked = rotation(len(prompts), len(condition.wordings), wordings_per_prompt)
    cots = [condition.wordings[one.wording] for one in asked] if condition.wordings else None
    requests = [prompts[one.prompt].text for one in asked]
    generations = generate(model, requests, thinking=condition.thinking, cot=cots, samples=samples, **options)
    return [replace(one, sample=sample) for one in asked for sample in range(samples)], generations


def judged_answers(
    prompts: Sequence[Prompt],
    condition: Condition,
    asked: Sequence[Asked],
    generations: Sequence[Generation],
    judge: Judge,
) -> pd.DataFrame:
    """One row per answer: prompt, wording, label, the judge's evidence, CoT, response, how it ended, the chat's tokens.

    `cot_refused`: whether the model's own thought refuses, by `RefusalJudge`, whoever judges the answers (a paid judge
    is not asked twice); <NA> where it wrote no thought or that judge has no verdict. Its errors on thoughts were not
    measured. `harmful` and `harm_score` are columns where the judge fills them, <NA> and NaN where it came to no
    verdict.
    """
    requests = [prompts[one.prompt].text for one in asked]
    judgements = judge(
        requests,
        [g.response for g in generations],
        [g.cot for g in generations],
        [g.truncated for g in generations],
    )
    thoughts = refused_thoughts(requests, ["" if condition.wordings else g.cot for g in generations])
    rows = [
        {
            "condition": condition.name,
            "prompt": one.prompt,
            "wording": one.wording,
            "sample": one.sample,
            "request": prompts[one.prompt].text,
            "category": prompts[one.prompt].category,
            "label": judgement.label,
            "confidence": judgement.confidence,
            "evidence": judgement.evidence,
            **{column: getattr(judgement, column) for column in HARM if column in filled_by(judge)},
            "cot": generation.cot,
            "cot_refused": cot_refused,
            "response": generation.response,
            "closed": generation.closed,
            "cut": generation.cut,
            "truncated": generation.truncated,
            "refusal_score": generation.score,
            "token_ids": generation.chat.token_ids,
            "segment_ids": generation.chat.segment_ids,
        }
        for one, generation, judgement, cot_refused in zip(asked, generations, judgements, thoughts, strict=True)
    ]
    kinds = {
        "cot_refused": "boolean",
        "closed": "boolean",
        "cut": "boolean",
        "harmful": "boolean",
        "harm_score": "float64",
    }
    answers = pd.DataFrame(rows)
    return answers.astype({column: kind for column, kind in kinds.items() if column in answers})


def refused_thoughts(requests: Sequence[str], cots: Sequence[str]) -> list[bool | None]:
    """Whether each thought refuses its request; None where there is no thought or no verdict."""
    written = [i for i, cot in enumerate(cots) if cot]
    verdicts = RefusalJudge()([requests[i] for i in written], [cots[i] for i in written])
    found: list[bool | None] = [None] * len(cots)
    for i, verdict in zip(written, verdicts, strict=True):
        found[i] = None if verdict.label == "unjudged" else verdict.label == "refused"
    return found


def chats_of(answers: pd.DataFrame) -> list[Chat]:
    """The very chats that answers were given to, up to their decision positions."""
    return [
        Chat(
            text="",
            token_ids=np.asarray(row.token_ids),
            segment_ids=np.asarray(row.segment_ids),
            thinking=row.condition if row.condition in ("off", "on") else "prefilled",
            request=row.request,
            decision_position=len(row.token_ids) - 1,
        )
        for row in answers.itertuples()
    ]


def cells(answers: pd.DataFrame, hit: Sequence[bool]) -> Outcomes:
    """Outcomes as [prompt, wording, sample], NaN where a prompt was not asked with a wording."""
    prompts, wordings, samples = (answers[name].to_numpy() for name in ("prompt", "wording", "sample"))
    columns = np.maximum(wordings, 0)
    table = np.full((prompts.max() + 1, columns.max() + 1, samples.max() + 1), np.nan)
    table[prompts, columns, samples] = np.asarray(hit, dtype=float)
    return table


def per_prompt(answers: pd.DataFrame, hit: Sequence[bool], by: Sequence[str]) -> pd.DataFrame:
    """How often a prompt's answers count: one row per prompt and wording within `by`.

    Columns: k of n samples, `rate`, and Wilson's interval of that prompt's own probability.
    """
    keys = [*by, "prompt", "wording", "request"]
    counts = answers.assign(hit=np.asarray(hit, dtype=int)).groupby(keys, sort=False)["hit"].agg(["sum", "size"])
    table = counts.rename(columns={"sum": "k", "size": "n"}).reset_index()
    ends = [wilson(int(k), int(n)) for k, n in zip(table["k"], table["n"], strict=True)]
    return table.assign(rate=table["k"] / table["n"], low=[end.low for end in ends], high=[end.high for end in ends])
