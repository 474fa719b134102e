"""How well every checkpoint does maths, on the same problems, against the reference.

    log-likelihood   mean over the tokens of log p(token | problem), in nats, of the worked answer (CoT, close tag and
    "The answer
                     is X.", thinking on) where the problems have rationales, else of "The answer is X.", thinking off
    solved           share of problems whose generated answer is right (math-verify); only where generation is asked for

Small models solve next to nothing, where the likelihood of right answers still says whether maths was learned.
Differences from the reference are paired by problem: Tango's interval and McNemar's p for solved, a bootstrap over
problems and the p of `mean_test` for the likelihood, q by Benjamini and Hochberg over the checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from rim_lens.behavior.refusal_score import mean_log_likelihood
from rim_lens.causal.set_answers import ANSWER
from rim_lens.chat.chat import Chat
from rim_lens.data.prompts import Prompt
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.processes import all_rows
from rim_lens.results import Result
from rim_lens.stats import benjamini_hochberg, bootstrap_mean, mean_test, paired_difference, wilson
from rim_lens.training_time.series import Checkpoint, written_chat

WORKED, STATED = ("cot", "think_close", "response"), ("response",)  # what the model is to write, thinking on and off


@dataclass(frozen=True, eq=False)
class SeriesMaths(Result):
    """Maths over a checkpoint series.

    `table`: one row per checkpoint: mean `likelihood` of right answers with its interval, its `change` from the
    reference with interval, `p`, `q`; where problems were answered, `solved` of `n`, `rate` with its interval,
    `difference` with interval and `solved_p`. `answers`: one row per checkpoint and problem. `worked`: whether the
    likelihood is of worked answers.
    """

    figure: ClassVar = "series:maths_over_series"

    table: pd.DataFrame
    answers: pd.DataFrame
    reference: str
    worked: bool
    thinking: str | None

    def caption(self) -> str:
        """What is measured on how many problems."""
        n, what = (
            int(self.table["n"].iloc[0]),
            "worked answers, thinking on" if self.worked else "answers, thinking off",
        )
        solved = f"; solved: thinking {self.thinking}" if self.thinking else ""
        return (
            f"n = {n} maths problems per checkpoint; log-likelihood per token of right {what}{solved}; "
            f"differences from {self.reference}"
        )


def right_answer(model: LensModel, problem: Prompt, worked: bool) -> Chat:
    """The chat in which a problem is answered right."""
    stated = ANSWER.format(answer=problem.answer)
    if worked:
        return written_chat(model, problem.text, " ".join(str(problem.rationale).split("\n")), stated)
    (chat,) = model.render(problem.text, thinking="off")
    return model.chat_format.write(chat, stated)


@halves_batches
@torch.no_grad()
def likelihoods(
    model: LensModel, chats: Sequence[Chat], segments: Sequence[str], batch_size: int
) -> Float[np.ndarray, "prompt"]:
    """Mean log-probability per token of these segments of each chat, in nats."""
    values, order = np.zeros(len(chats)), list[int]()
    for indices, batch in model.shared_batches(chats, batch_size):
        values[indices] = mean_log_likelihood(model, batch, segments)
        order += indices
    return all_rows(values, order)


def maths_table(answers: pd.DataFrame, checkpoints: Sequence[Checkpoint], reference: str, seed: int) -> pd.DataFrame:
    """One row per checkpoint."""
    by_name = {str(name): rows.sort_values("prompt") for name, rows in answers.groupby("checkpoint", sort=False)}
    before = by_name[reference]
    rows = [
        {"checkpoint": checkpoint.name, "arm": checkpoint.arm, "step": checkpoint.step, "seed": checkpoint.seed}
        | row_of(by_name[checkpoint.name], before, seed)
        for checkpoint in checkpoints
    ]
    table = pd.DataFrame(rows)
    others = table["checkpoint"] != reference
    for p, q in (("p", "q"), ("solved_p", "solved_q")):
        if p in table:
            table[q] = np.nan
            if others.any():
                table.loc[others, q] = benjamini_hochberg(table.loc[others, p].to_numpy())
    return table


def row_of(rows: pd.DataFrame, reference: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Likelihood and, where there are answers, problems solved, against the reference."""
    after, before = (side["likelihood"].to_numpy() for side in (rows, reference))
    mean, change = bootstrap_mean(after, seed=seed), bootstrap_mean(after - before, seed=seed)
    row: dict[str, Any] = {
        "n": len(rows),
        "likelihood": after.mean(),
        "likelihood_low": mean.low,
        "likelihood_high": mean.high,
        "change": (after - before).mean(),
        "change_low": change.low,
        "change_high": change.high,
        "p": float(mean_test(after - before, seed=seed).p),
    }
    if "solved" not in rows:
        return row
    right, earlier = (side["solved"].to_numpy(dtype=bool) for side in (rows, reference))
    interval, paired = wilson(int(right.sum()), len(right)), paired_difference(right, earlier)
    return row | {
        "solved": int(right.sum()),
        "rate": float(right.mean()),
        "low": interval.low,
        "high": interval.high,
        "difference": paired.value,
        "difference_low": paired.interval.low,
        "difference_high": paired.interval.high,
        "solved_p": paired.p,
    }
