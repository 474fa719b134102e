"""Refusal direction: one direction of the residual stream, chosen by what taking it out and adding it do to refusal.

1. Candidates: mean residual of harmful minus mean residual of harmless requests, on prompts to *fit*, at every layer
   below `last_layer` and every template position from the request's last token to the decision position.
2. Choice, on prompts to *select*. Estimates from gradients rank all candidates (`direction_candidates`); of the
   `n_candidates` first, each r at a layer l has
       bypass = mean refusal score of harmful requests with r projected out          lower is better
       induce = mean refusal score of harmless requests with r added at layer l      at least `least_induced`
       kl     = mean KL(clean ‖ r projected out) of the first token, harmless        at most `kl_limit`
   From the lowest bypass up, kl and then induce are measured until a candidate may be chosen.
3. Test, on other prompts: effect of both changes with intervals over prompts, against random directions and against the
   same difference under shuffled labels, both of the chosen direction's norm. Labels are shuffled so that half of each
   group is on each side: otherwise a shuffled difference would hold a part of the true one, and projecting out takes
   any part for the whole.

Source: Arditi et al. 2024, section 2.3 and appendix C, which measures all candidates and has no controls and no third
set of prompts.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from rim_lens.behavior.judge import Judge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.causal.ablation import ablation
from rim_lens.causal.measures import AnswerMeasure, ScoreMeasure
from rim_lens.causal.set_effects import set_effect
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.errors import RimLensError
from rim_lens.inference_time.direction_candidates import Limits, chosen_candidate
from rim_lens.inference_time.groups import need_distinct_requests
from rim_lens.inference_time.template_positions import shared_template, template_residuals
from rim_lens.intervene.steer import steer
from rim_lens.model.as_chats import as_chats
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result

LEAST = 4  # prompts of each kind in each part
SHARES = (0.4, 0.2, 0.4)  # to fit, select and test
WHERE = ("harmful", "harmless")
SHORT_ANSWER = 24  # tokens


@dataclass(frozen=True, eq=False)
class RefusalDirection(Result):
    """The direction that refusal depends on, and what it does on prompts that it was not chosen on.

    `table`: per change ("project_out", "add"), measure and kind of control ("random directions", "shuffled labels") the
    means `before` and `after`, their difference `effect` with its 95 % interval over `n` prompts, and its place among
    `n_controls` directions of the same norm (`control_mean`, `control_low`, `control_high`, `percentile`, `p`).
    `candidates`: per layer and position `norm`, the estimates `falls` (of the change of `bypass`) and `moves` (of
    `kl`), `bypass`, `induce` and `kl` (nats; NaN where not measured), whether it was `allowed` and is `chosen`.
    `vector` [d_model] is the difference of means itself, which `steer` adds `add` times.
    """

    figure: ClassVar = "direction:direction_effects"

    table: pd.DataFrame
    candidates: pd.DataFrame
    vector: Float[np.ndarray, "d_model"]
    layer: int
    position: int
    positions: list[str]
    n_fit: tuple[int, int]  # harmful and harmless prompts
    n_select: tuple[int, int]
    tokens: str

    def caption(self) -> str:
        """Where it is read, and its effects on the test prompts."""
        rows = self.table[self.table["controls"] == "random directions"]
        sentences = "; ".join(
            f"{row['change']}: {row['measure']} {row['effect']:+.3g} [{row['low']:.3g}, {row['high']:.3g}], "
            f"n = {row['n']}, p = {row['p']:.2g}"
            for _, row in rows.iterrows()
        )
        return (
            f"Layer {self.layer}, token {self.positions[self.position]!r}; fitted on {self.n_fit[0]} harmful and "
            f"{self.n_fit[1]} harmless prompts, chosen on {self.n_select[0]} and {self.n_select[1]} others. "
            f"{sentences}."
        )


@halves_batches
def refusal_direction(
    model: LensModel,
    harmful: Prompts,
    harmless: Prompts,
    *,
    thinking: Thinking = "off",
    cot: str | None = None,
    shares: tuple[float, float, float] = SHARES,
    kl_limit: float = 0.1,
    least_induced: float = 0.0,
    last_layer: float = 0.8,
    n_candidates: int | None = 8,
    n_controls: int = 19,
    judge: Judge | None = None,
    n_generated_controls: int = 5,
    tokens: RefusalTokens | None = None,
    batch_size: int = 32,
    seed: int = 0,
    **generation: Any,
) -> RefusalDirection:
    """Find the direction of refusal and test it.

    Args:
        model: the model.
        harmful: requests that should be refused (rendered for `thinking`), or chats up to the decision position.
        harmless: requests that should not be.
        thinking: mode of requests that are not rendered yet; "prefilled" needs `cot`.
        cot: the CoT to prefill.
        shares: of the prompts to fit, select and test on; drawn with `seed`, no request in two of them.
        kl_limit: largest mean KL on harmless requests that a candidate may cost, in nats.
        least_induced: smallest mean refusal score on harmless requests that adding a candidate must bring, in nats.
        last_layer: share of the layers that candidates are taken from; later ones only spell out tokens.
        n_candidates: how many candidates are measured, those with the lowest estimates first; more where none of them
            may be chosen. None: all.
        n_controls: directions of each kind of control; p cannot fall below 1 / (1 + n_controls).
        judge: labels generated answers too; without one only refusal scores are measured.
        n_generated_controls: directions of each kind of control with generated answers.
        tokens: the refusal tokens; `refusal_tokens(model)` by default.
        batch_size: chats of a pass.
        seed: of parts, controls and bootstraps.
        generation: options of `generate`, such as max_new_tokens.

    Raises:
        RimLensError: fewer than four prompts of a kind in a part, a request that occurs twice, or no candidate that may
            be chosen.

    """
    rng = np.random.default_rng(seed)
    tokens = tokens or refusal_tokens(model)
    chats = [as_chats(model, one, thinking=thinking, cot=cot) for one in (harmful, harmless)]
    need_distinct_requests([chat for side in chats for chat in side], "refusal_direction")
    fit, select, test = zip(*(_parts(side, shares, rng) for side in chats), strict=True)
    template = shared_template(model, [*fit[0], *fit[1]])
    x = template_residuals(model, [*fit[0], *fit[1]], template, batch_size).astype(np.float64)
    is_harmful = np.arange(len(x)) < len(fit[0])
    n_layers = max(1, int(last_layer * model.n_layers))
    vectors = difference(x[:, :n_layers], is_harmful)
    limits = Limits(kl_limit, least_induced)
    candidates = chosen_candidate(model, vectors, template.labels, select, tokens, limits, n_candidates, batch_size)
    layer, position = (int(candidates.loc[candidates["chosen"], name].item()) for name in ("layer", "position"))
    cell = x[:, layer, position]
    vector = difference(cell, is_harmful)
    controls = controls_of(vector, cell, is_harmful, max(n_controls, n_generated_controls), rng)
    measures: list[tuple[ScoreMeasure | AnswerMeasure, int]] = [
        (ScoreMeasure(model, side, tokens, where, batch_size), n_controls)
        for side, where in zip(test, WHERE, strict=True)
    ]
    if judge is not None:
        options = {"max_new_tokens": SHORT_ANSWER} | generation
        measures += [
            (AnswerMeasure(model, side, judge, where, options), n_generated_controls)
            for side, where in zip(test, WHERE, strict=True)
        ]
    rows = [
        row
        for measure, n in measures
        for row in _effects(model, measure, vector, layer, {kind: one[:n] for kind, one in controls.items()}, seed)
    ]
    return RefusalDirection(
        table=pd.DataFrame(rows),
        candidates=candidates,
        vector=vector,
        layer=layer,
        position=position,
        positions=template.labels,
        n_fit=(len(fit[0]), len(fit[1])),
        n_select=(len(select[0]), len(select[1])),
        tokens=str(tokens),
        manifest=Manifest.collect(model, seed=seed, kl_limit=kl_limit, least_induced=least_induced),
    )


def difference(
    x: Float[np.ndarray, "row *cell d_model"], first: Bool[np.ndarray, "row"]
) -> Float[np.ndarray, "*cell d_model"]:
    """Mean of the rows in `first` minus mean of the others."""
    return x[first].mean(axis=0) - x[~first].mean(axis=0)


def controls_of(
    vector: Float[np.ndarray, "d_model"],
    cell: Float[np.ndarray, "row d_model"],
    is_harmful: Bool[np.ndarray, "row"],
    n: int,
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "control d_model"]]:
    """Directions of the same norm: drawn evenly from all, and differences of means under shuffled labels."""
    drawn = {
        "random directions": rng.normal(size=(n, len(vector))),
        "shuffled labels": np.stack([difference(cell, _half_of_each(is_harmful, rng)) for _ in range(n)]),
    }
    norm = np.linalg.norm(vector)
    return {name: norm * one / np.linalg.norm(one, axis=1, keepdims=True) for name, one in drawn.items()}


def _half_of_each(is_harmful: Bool[np.ndarray, "row"], rng: np.random.Generator) -> Bool[np.ndarray, "row"]:
    """True for a random half of the harmful and of the harmless rows."""
    half = np.zeros(len(is_harmful), dtype=bool)
    for group in (True, False):
        members = rng.permutation(np.flatnonzero(is_harmful == group))
        half[members[: len(members) // 2]] = True
    return half


def _parts(
    chats: Sequence[Chat], shares: tuple[float, float, float], rng: np.random.Generator
) -> tuple[list[Chat], list[Chat], list[Chat]]:
    """The chats dealt out to fit, select and test."""
    borders = np.round(np.cumsum(shares) / sum(shares) * len(chats)).astype(int)
    parts = np.split(rng.permutation(len(chats)), borders[:2])
    if min(map(len, parts)) < LEAST:
        raise RimLensError(
            f"refusal_direction needs at least {LEAST} prompts of each kind to fit, select and test, but {len(chats)} "
            f"prompts in shares {shares} make {', '.join(str(len(part)) for part in parts)}; pass more prompts."
        )
    fit, select, test = ([chats[i] for i in part] for part in parts)
    return fit, select, test


def _effects(
    model: LensModel,
    measure: ScoreMeasure | AnswerMeasure,
    vector: Float[np.ndarray, "d_model"],
    layer: int,
    controls: dict[str, Float[np.ndarray, "control d_model"]],
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of one measure: projected out, and (of harmless requests) added, against each kind of control."""

    def added(units: list[Any]) -> AbstractContextManager[LensModel]:
        """One set for all rows, or one per row."""
        return steer(model, [one for (one,) in units] if isinstance(units[0], list) else units, add=1.0, layers=layer)

    changes: dict[str, Callable[..., Any]] = {"project_out": ablation(model, "direction", "zero", "all", None)}
    if measure.where == "harmless":
        changes["add"] = added
    rows = []
    for change, apply in changes.items():
        before = measure([[]], apply)
        sets = [[vector], *([one] for of_kind in controls.values() for one in of_kind)]
        for name, measured in measure(sets, apply).items():
            base, after, null = before[name].values[0], measured.values[0], np.split(measured.values[1:], len(controls))
            for kind, of_kind in zip(controls, null, strict=True):
                effect = set_effect(base, after, of_kind, is_share=measured.is_share, seed=seed)
                rows.append({"change": change, "measure": name, "controls": kind} | effect)
    return rows
