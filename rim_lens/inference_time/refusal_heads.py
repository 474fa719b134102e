"""Which heads' attention goes with refusal: candidates, since only an ablation shows that a head causes anything.

Source: Yan et al., "When Thinking Backfires" (arXiv 2509.00544), section 3. Four contrasts of a head's span attention
at the decision position, where the first answer token is written. Each is positive where the head behaves as the paper
describes:

    cot_divergence      attention to the CoT, complied minus refused answers      (thinking on or prefilled)
    empty_span          attention to the empty think span, refused minus complied  (thinking off)
    tag_to_span         the same less the attention to the assistant tag: the paper's own criterion for such a head
    empty_span_change   attention to think_open + think_close, off minus on, the same requests in both modes

Each is computed on the mass (share of attention) and on the lift (mass over the segment's share of the keys). A long
CoT draws mass from every head that attends evenly, and a head that is always full on the CoT has less lift on a longer
one, so a head is a *candidate* only where both have q < 0.05 and the same sign. Candidates are ranked by the mass that
moves, not by the standardised effect: a head that hardly looks at the span can do so with great regularity.
`empty_span_change` compares modes, not answers: it describes what a CoT does to a head and makes no candidate by
itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.behavior.judge import Judgement
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.inference_time.contrast import Contrast, group_contrast, pair_contrast, rank_contrast
from rim_lens.inference_time.groups import Groups, groups_of, need_distinct_requests, need_groups
from rim_lens.inference_time.span_attention import SpanAttention, span_attention
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.units import Head

ContrastName = Literal["cot_divergence", "empty_span", "tag_to_span", "empty_span_change"]
CONTRASTS: tuple[ContrastName, ...] = ("cot_divergence", "empty_span", "tag_to_span", "empty_span_change")
COT = [SEGMENTS.index("cot")]
EMPTY_SPAN = [SEGMENTS.index("think_open"), SEGMENTS.index("think_close")]
TAG = [SEGMENTS.index("assistant_tag")]
FALSE_DISCOVERIES = 0.05
MEASURES = ("mass", "lift")


@dataclass(frozen=True, eq=False)
class RefusalHeads(Result):
    """Heads whose attention goes with refusal: candidates first, by the attention mass that moves.

    `table` has one row per head and contrast; `shift` is the difference of the groups' mean mass. For each measure m of
    mass and lift: `m_effect` (Cohen's d, d_z for the paired change, Spearman's ρ for an outcome) with its 95 % interval
    `m_low`, `m_high`; `m_auroc`; `m_p` (permutation, two-sided), `m_q` (Benjamini-Hochberg over all heads of the
    contrast), `m_family_p`; and the groups' means `m_plus`, `m_minus`. `plus` and `minus` name the groups, `n_plus` and
    `n_minus` count their chats. `left_out` counts incoherent answers, and `not_tested` says why a contrast is missing.
    `held_out` is set by `on_other_chats`: attention of the first heads on chats that did not choose them.
    """

    figure: ClassVar = "attention:attention_contrast"

    table: pd.DataFrame
    n_permutations: int
    left_out: int
    not_tested: dict[str, str]
    held_out: pd.DataFrame | None = None

    def of(self, contrast: ContrastName) -> pd.DataFrame:
        """The rows of one contrast. Raises RimLensError with the reason when it was not tested."""
        rows = self.table[self.table["contrast"] == contrast]
        if rows.empty:
            raise RimLensError(self.not_tested.get(contrast) or f"No contrast {contrast!r}; use one of {CONTRASTS}.")
        return rows.reset_index(drop=True)

    def ranked(self, contrast: ContrastName, k: int | None = None) -> list[Head]:
        """The first k heads (all by default) that shift as the paper describes, i.e. with a positive `shift`."""
        rows = self.of(contrast)
        rows = rows[rows["shift"] > 0].head(len(rows) if k is None else k)
        return Head.from_table(rows)

    def candidates(self, contrast: ContrastName | None = None) -> list[Head]:
        """Candidate heads of one contrast or of all, in the order of the table, each once."""
        rows = self.table[self.table["candidate"]]
        if contrast is not None:
            rows = rows[rows["contrast"] == contrast]
        heads = Head.from_table(rows)
        return list(dict.fromkeys(heads))

    def caption(self) -> str:
        """What was compared, with n, and what the correction was."""
        parts = []
        for name, rows in self.table.groupby("contrast", sort=False):
            first = rows.iloc[0]
            n = f"{first['plus']} {first['n_plus']} − {first['minus']} {first['n_minus']}"
            parts.append(f"{name}: {n}, {int(rows['candidate'].sum())} candidates of {len(rows)} heads")
        return (
            f"{'; '.join(parts)}. Candidates: q < {FALSE_DISCOVERIES} on mass and lift alike (Benjamini-Hochberg "
            f"over heads, {self.n_permutations} permutations); {self.left_out} incoherent answers left out."
        )


def find_refusal_heads(
    model: LensModel,
    chats: Prompts,
    judged: Sequence[Judgement | str] | None = None,
    *,
    outcome: Float[np.ndarray, "chat"] | None = None,
    contrasts: Sequence[ContrastName] | None = None,
    attention: SpanAttention | None = None,
    n_permutations: int = 2000,
    min_group: int = 5,
    seed: int = 0,
) -> RefusalHeads:
    """Contrast every head's span attention between refused and complied answers.

    Args:
        model: the model.
        chats: chats up to the decision position, in any thinking modes; a mode decides which contrasts a chat enters.
            Within a contrast each request may occur once.
        judged: the judgement (or label) of each chat's answer; incoherent ones are left out and counted.
        outcome: in place of judgements, a number per chat that is higher for refusal, for instance the refusal score;
            effects are then Spearman correlations.
        contrasts: which ones; by default all that the chats allow, the others listed in `not_tested`.
        attention: `span_attention(model, chats)` at the decision position, if it was computed before.
        n_permutations: of the permutation tests.
        min_group: smallest number of refused and of complied chats (of chats, or of pairs, where there are no groups).
        seed: of permutations and bootstraps.

    Raises:
        RimLensError: neither or both of `judged` and `outcome`; a contrast that was asked for (or every one) has too
            few chats in a group; a request that occurs twice.

    """
    chats = as_chats(model, chats)
    if (judged is None) == (outcome is None):
        raise RimLensError("Give either judged= (labels of the answers) or outcome= (a number per chat), and not both.")
    groups = None if judged is None else groups_of(chats, judged)
    if outcome is not None and np.shape(outcome) != (len(chats),):
        raise RimLensError(f"{len(chats)} chats need as many outcomes, got an array of shape {np.shape(outcome)}.")
    spans = span_attention(model, chats) if attention is None else attention
    data = _Data(
        chats=list(chats),
        measures={name: np.asarray(getattr(spans, name), dtype=np.float64) for name in MEASURES},
        groups=groups,
        outcome=None if outcome is None else np.asarray(outcome, dtype=np.float64),
        min_group=min_group,
        options={"n_permutations": n_permutations, "seed": seed},
    )
    if len(data.measures["mass"]) != len(chats):
        raise RimLensError(f"The given attention is of {len(data.measures['mass'])} chats, not of these {len(chats)}.")
    tables: list[pd.DataFrame] = []
    reasons: dict[str, str] = {}
    for name in contrasts or CONTRASTS:
        try:
            tables.append(_table(name, _CONTRAST_OF[name](data)))
        except RimLensError as error:
            if contrasts is not None:
                raise
            reasons[name] = str(error)
    if not tables:
        raise RimLensError(
            f"No contrast can be tested. {' '.join(f'{name}: {text}' for name, text in reasons.items())}"
        )
    table = pd.concat(tables, ignore_index=True)
    left_out = 0 if groups is None else groups.n_left_out
    manifest = Manifest.collect(model, seed=seed, n_chats=len(chats), min_group=min_group)
    return RefusalHeads(table, n_permutations, left_out, reasons, manifest=manifest)


@dataclass(frozen=True, eq=False)
class _Data:
    """What every contrast draws on."""

    chats: list[Chat]
    measures: dict[str, Float[np.ndarray, "chat layer head segment"]]
    groups: Groups | None
    outcome: Float[np.ndarray, "chat"] | None
    min_group: int
    options: dict[str, int]

    def rows(self, modes: tuple[str, ...], segments: list[int]) -> list[int]:
        """Chats of these modes in which the segments have tokens, if judged or scored at all."""
        return [
            i
            for i, chat in enumerate(self.chats)
            if chat.thinking in modes and np.isin(chat.segment_ids, segments).any() and self._counts(i)
        ]

    def _counts(self, i: int) -> bool:
        return self.groups is None or bool(self.groups.refused[i] or self.groups.complied[i])


@dataclass(frozen=True, eq=False)
class _Tested:
    """One contrast on both measures, and what its two sides are."""

    plus: str
    minus: str
    by_measure: dict[str, Contrast]


def _cot_divergence(data: _Data) -> _Tested:
    return _answer_contrast(data, ("on", "prefilled"), COT, plus="complied", what="cot_divergence")


def _empty_span(data: _Data) -> _Tested:
    return _answer_contrast(data, ("off",), EMPTY_SPAN, plus="refused", what="empty_span")


def _tag_to_span(data: _Data) -> _Tested:
    return _answer_contrast(data, ("off",), EMPTY_SPAN, plus="refused", what="tag_to_span", less=TAG)


def _answer_contrast(
    data: _Data, modes: tuple[str, ...], segments: list[int], plus: str, what: str, less: Sequence[int] = ()
) -> _Tested:
    """Attention to `segments`, less that to `less`, by refused and complied chats, or against the outcome."""
    rows = data.rows(modes, segments)
    if not rows:
        raise RimLensError(f"{what} needs chats with thinking {' or '.join(modes)}; there are none among the chats.")
    need_distinct_requests([data.chats[i] for i in rows], what)
    minus = "refused" if plus == "complied" else "complied"
    if data.outcome is not None:
        if len(rows) < 2 * data.min_group:
            raise RimLensError(
                f"{what} has only {len(rows)} chats; a rank correlation needs {2 * data.min_group} or more."
            )
        sign = 1.0 if plus == "refused" else -1.0
        scores = sign * data.outcome[rows]
        test: Callable[..., Contrast] = lambda values: rank_contrast(values, scores, **data.options)  # noqa: E731
        plus, minus = f"more {plus}", f"more {minus}"
    else:
        assert data.groups is not None
        is_plus = getattr(data.groups, plus)[rows]
        refused = int(data.groups.refused[rows].sum())
        need_groups(refused, len(rows) - refused, data.min_group, what)
        test = lambda values: group_contrast(values, is_plus, **data.options)  # noqa: E731
    values = {measure: _over(data, measure, segments)[rows] for measure in MEASURES}
    if less:
        values = {measure: of - _over(data, measure, list(less))[rows] for measure, of in values.items()}
    return _Tested(plus, minus, {measure: test(of) for measure, of in values.items()})


def _empty_span_change(data: _Data) -> _Tested:
    unjudged = replace(data, groups=None)
    sides = [unjudged.rows(modes, EMPTY_SPAN) for modes in (("off",), ("on", "prefilled"))]
    for rows in sides:
        need_distinct_requests([data.chats[i] for i in rows], "empty_span_change")
    off, on = ({data.chats[i].request: i for i in rows} for rows in sides)
    shared = [request for request in off if request in on]
    if len(shared) < data.min_group:
        raise RimLensError(
            "empty_span_change pairs chats of one request with thinking off and on (or prefilled), but only "
            f"{len(shared)} requests have both; render the same requests in both modes, at least {data.min_group} of "
            "them."
        )
    pairs = [off[request] for request in shared], [on[request] for request in shared]
    tests = {}
    for measure in MEASURES:
        values = _over(data, measure, EMPTY_SPAN)
        tests[measure] = pair_contrast(values[pairs[0]], values[pairs[1]], **data.options)
    return _Tested("off", "on", tests)


_CONTRAST_OF: dict[str, Callable[[_Data], _Tested]] = {
    "cot_divergence": _cot_divergence,
    "empty_span": _empty_span,
    "tag_to_span": _tag_to_span,
    "empty_span_change": _empty_span_change,
}


def _over(data: _Data, measure: str, segments: list[int]) -> Float[np.ndarray, "chat layer head"]:
    """Mass or lift of several segments taken together."""
    mass = data.measures["mass"][..., segments].sum(axis=-1)
    if measure == "mass":
        return mass
    ends = [chat.decision_position + 1 for chat in data.chats]
    share = [np.isin(chat.segment_ids[:end], segments).mean() for chat, end in zip(data.chats, ends, strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return mass / np.array(share)[:, None, None]


def _table(name: str, tested: _Tested) -> pd.DataFrame:
    """One row per head, candidates first."""
    mass = tested.by_measure["mass"]
    layer, head = np.indices(mass.effect.shape).reshape(2, -1)
    columns: dict[str, object] = {
        "contrast": name,
        "layer": layer,
        "head": head,
        "name": [str(Head(i, j)) for i, j in zip(layer, head, strict=True)],
        "plus": tested.plus,
        "minus": tested.minus,
        "n_plus": mass.n_plus,
        "n_minus": mass.n_minus,
    }
    for measure, test in tested.by_measure.items():
        for field in ("effect", "low", "high", "auroc", "p", "q", "family_p"):
            columns[f"{measure}_{field}"] = getattr(test, field).ravel()
        columns[f"{measure}_plus"], columns[f"{measure}_minus"] = test.mean_plus.ravel(), test.mean_minus.ravel()
    table = pd.DataFrame(columns)
    small_q = (table["mass_q"] < FALSE_DISCOVERIES) & (table["lift_q"] < FALSE_DISCOVERIES)
    agree = np.sign(table["mass_effect"]) == np.sign(table["lift_effect"])
    table.insert(8, "shift", table["mass_plus"] - table["mass_minus"])
    table.insert(9, "candidate", small_q & agree & (name != "empty_span_change"))
    order = np.lexsort((-table["shift"].abs().to_numpy(), ~table["candidate"].to_numpy()))
    table = table.iloc[order].reset_index(drop=True)
    table.insert(1, "rank", np.arange(1, len(table) + 1))
    return table
