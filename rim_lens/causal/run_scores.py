"""Scores of many changed runs of every prompt: the one computation behind all sweeps.

score   = metric(logits at the decision position), by default the refusal score (design 2)
effect  = score of the changed run − score of the clean run, of the same prompt

Of several processes each scores its share of the prompts, or of the sets of heads where there are fewer prompts than
processes.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from rim_lens.behavior.refusal_score import RefusalTokens, log_odds, refusal_tokens
from rim_lens.causal.changed_runs import whole_passes, why_not
from rim_lens.causal.head_runs import HeadRuns, one_hot
from rim_lens.causal.resume import ResumablePass
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, places, words_of
from rim_lens.errors import RimLensError
from rim_lens.intervene.recording import HeadRecording
from rim_lens.model.batch import Batch
from rim_lens.model.finite import check_finite
from rim_lens.model.fitting import AtOnce, over_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.shared_prefix import attends_everywhere, common_length, prefix_first, shared_length
from rim_lens.model.sites import sites_of
from rim_lens.model.taps_fast import serves
from rim_lens.processes import all_rows, gather_items, n_processes, rank, share
from rim_lens.progress import track
from rim_lens.units import AnyHead, Head, heads_from

T = TypeVar("T")
MetricFunction = Callable[[Float[Tensor, "row vocab"]], Float[Tensor, " row"]]
Metric = RefusalTokens | MetricFunction
KEPT_BYTES = 256 << 20
SHARED_FROM = 4  # common tokens at the beginning of all prompts that are computed once per change
PROMPTS_THAT_SHARE = 16
ROWS_TO_FILL = 256  # tokens in one matrix product below which prompts are batched together


@dataclass(frozen=True, eq=False)
class RunScores:
    """Scores of clean and changed runs; `how` is "resumed" or "plain", `why` the reason for "plain"."""

    clean: Float64[np.ndarray, " prompt"]
    changed: Float64[np.ndarray, "prompt set"]
    how: str
    why: str

    @property
    def effect(self) -> Float64[np.ndarray, "prompt set"]:
        """Changed minus clean."""
        return self.changed - self.clean[:, None]


class CleanPasses:
    """Clean passes kept for a second use, as long as their residual streams take less than `KEPT_BYTES` in all."""

    def __init__(self) -> None:
        self.passes: dict[tuple[int, ...], ResumablePass] = {}
        self.n_bytes = 0

    def keep(self, indices: Sequence[int], one: ResumablePass) -> None:
        """Keep the pass over the prompts of these indices, if there is room."""
        if self.n_bytes + one.n_bytes <= KEPT_BYTES:
            self.passes[tuple(indices)] = one
            self.n_bytes += one.n_bytes

    def of(self, indices: Sequence[int]) -> ResumablePass | None:
        """Hand the pass over these prompts out, once; one over these and others is of no use any more and dropped."""
        found = self.passes.pop(tuple(indices), None)
        self.passes = {prompts: one for prompts, one in self.passes.items() if set(prompts).isdisjoint(indices)}
        return found


def score_runs(
    model: LensModel,
    chats: Sequence[Chat],
    head_sets: Sequence[Sequence[AnyHead]],
    metric: MetricFunction,
    *,
    positions: Positions = "all",
    donated: HeadRecording | None = None,
    plain: bool = False,
    kept: CleanPasses | None = None,
    description: str = "changed runs",
) -> RunScores:
    """Score every prompt once per set of heads, with the set's outputs zeroed, or replaced by `donated`.

    Args:
        model: the model.
        chats: prompts; what follows a decision position is left out.
        head_sets: the heads that are changed together in one run.
        metric: scores from decision logits.
        positions: where heads are zeroed.
        donated: recorded outputs, prompt i for chat i, that replace the heads' own at the recorded offsets.
        plain: compute every run by a whole pass.
        kept: clean passes over the same prompts and positions that need not be computed again.
        description: of the progress bar.

    Raises:
        RimLensError: no chats, or a chat without a token at the positions.

    """
    chats, sets_of_heads = [cut_at_decision(chat) for chat in chats], [heads_from(heads) for heads in head_sets]
    if not chats or not head_sets:
        raise RimLensError("Changed runs need at least one chat and one set of heads.")
    if donated is not None and len(donated) != len(chats):
        raise RimLensError(f"{len(donated)} prompts were recorded for {len(chats)} chats; give one for each.")
    changed_at = changed_places(chats, positions, donated)
    by_prompt = len(chats) >= n_processes() or len(head_sets) < n_processes()
    sets = list(range(len(head_sets))) if by_prompt else share(len(head_sets), layers_to_run(model, sets_of_heads))
    scorer = Scorer(model, [sets_of_heads[i] for i in sets], metric, donated, kept, "asked for" if plain else None)
    scorer.everywhere = positions == "all" and donated is None
    clean, changed, order = np.empty(len(chats)), np.empty((len(chats), len(head_sets))), list[int]()
    size = PROMPTS_THAT_SHARE if scorer.everywhere and not plain and shares_template(model) else None
    for indices, base, values in over_prompts(
        model, chats, changed_at, scorer, description, split=by_prompt, size=size
    ):
        clean[indices] = base
        changed[np.ix_(indices, sets)] = values
        order += indices
    if by_prompt:
        clean, changed = all_rows(clean, order), all_rows(changed, order)
    else:
        changed = all_rows(changed.T, sets).T
    reasons = gather_items(n_processes(), [rank()], [scorer.why])  # a process without prompts has tried nothing
    why = next((one for one in reasons if one), None)
    return RunScores(clean, changed, "plain" if why else "resumed", why or "")


@dataclass(eq=False)
class Scorer:
    """Scores a batch of prompts, clean and under every set of heads; `why` runs are not resumed is found on the way."""

    model: LensModel
    head_sets: Sequence[Sequence[Head]]
    metric: MetricFunction
    donated: HeadRecording | None
    kept: CleanPasses | None
    why: str | None
    everywhere: bool = False  # heads are zeroed at all positions

    def __post_init__(self) -> None:
        self.mask = one_hot(self.head_sets, self.model.n_layers, self.model.n_heads)
        self.at_once = AtOnce(sys.maxsize, "changed runs", "runs", inside=True)

    @torch.no_grad()
    def __call__(
        self, indices: list[int], batch: Batch, at: Bool[Tensor, "prompt pos"]
    ) -> tuple[list[int], Float64[np.ndarray, " prompt"], Float64[np.ndarray, "prompt set"]]:
        """The prompts' indices, their clean scores and those of their changed runs."""
        template = common_length(self.model, batch) if self.everywhere and len(batch) > 1 and not self.why else 0
        if template >= SHARED_FROM:
            moved = prefix_first(batch, template)
            runs, start = runs_of(moved, self.mask, torch.ones_like(at), None), 0
            if why_not(self.model, moved, runs, start, template) is None:
                batch = moved
            else:
                template = 0
        if template < SHARED_FROM:
            runs, start = runs_of(batch, self.mask, at, self.donated and self.donated[indices]), first_column(at)
            template = 0
        self.why = self.why or (None if template else why_not(self.model, batch, runs, start))
        whole = None
        if not self.why:
            kept = None if template or self.kept is None else self.kept.of(indices)
            shared = 0 if template else shared_length(self.model, batch)
            if shared + int(batch.first.max()) > start:  # a column that is changed would be moved
                shared = 0
            clean_batch = prefix_first(batch, shared) if shared else batch
            whole = kept or ResumablePass(self.model, clean_batch, start, template=template, shared=shared)
        base = self.model.decision_logits(batch) if whole is None else whole.logits
        check_finite(self.model, batch, base)
        clean, values = self.metric(base).double().cpu().numpy(), np.empty(len(runs))

        def take(rows: Tensor, logits: Tensor) -> None:
            values[rows.numpy()] = self.metric(logits).double().cpu().numpy()

        if whole is None:
            whole_passes(self.model, batch, runs, take, self.at_once)
        else:
            whole.give_logits(runs, take, self.at_once)
        need_numbers(values, batch, self.head_sets)
        return indices, clean, values.reshape(len(indices), -1)


def need_numbers(values: Float[np.ndarray, "run"], batch: Batch, head_sets: Sequence[Sequence[Head]]) -> None:
    """Raise where a score is NaN, with the prompt and the heads that were changed."""
    broken = np.flatnonzero(np.isnan(values))
    if len(broken):
        prompt, number = divmod(int(broken[0]), len(head_sets))
        named = ", ".join(map(str, head_sets[number][:6]))
        raise RimLensError(
            f"The score of the prompt {batch.chats[prompt].request[:60]!r} is NaN once {named} is changed; check "
            "what the heads are replaced by, and the metric."
        )


def layers_to_run(model: LensModel, head_sets: Sequence[Sequence[Head]]) -> list[int]:
    """Cost of each set's run: the layers from its first head on."""
    return [model.n_layers - min((layer for layer, _ in heads), default=model.n_layers) for heads in head_sets]


def over_prompts(
    model: LensModel,
    chats: Sequence[Chat],
    changed_at: Sequence[Bool[np.ndarray, "pos"]],
    work: Callable[[list[int], Batch, Bool[Tensor, "prompt pos"]], T],
    description: str,
    *,
    split: bool = True,
    size: int | None = None,
) -> Iterator[T]:
    """What `work` gives for batches of (cut) chats, called with their indices and the changed columns of each row.

    Short prompts go together, fewer of them where memory runs out. With `split` only the prompts of this process.
    """
    columns = max(len(where) - int(where.argmax()) for where in changed_at)
    size = size or min(16, math.ceil(ROWS_TO_FILL / (columns * model.n_heads)))
    total = math.ceil(len(chats) / size / (n_processes() if split else 1))

    def begun(indices: list[int], batch: Batch) -> T:
        at = torch.zeros(batch.tokens.shape, dtype=torch.bool)
        for row, prompt in enumerate(indices):
            at[row, -len(chats[prompt]) :] = torch.from_numpy(changed_at[prompt])
        return work(indices, batch, at)

    return track(over_batches(model, chats, size, begun, description, split=split), description, total=total)


def first_column(at: Bool[Tensor, "prompt pos"]) -> int:
    """The first column that is changed in any row."""
    return int(at.any(0).to(torch.uint8).argmax())


def runs_of(batch: Batch, mask: Tensor, at: Bool[Tensor, "prompt pos"], donated: HeadRecording | None) -> HeadRuns:
    """Every set of heads in every prompt of a batch, prompt by prompt."""
    prompt = torch.arange(len(batch)).repeat_interleave(len(mask))
    z = None if donated is None else donated.z
    number = torch.arange(len(mask)).repeat(len(batch))
    return HeadRuns(prompt, mask.repeat(len(batch), 1, 1), at, z, number)


def shares_template(model: LensModel) -> bool:
    """Whether runs of many prompts can share the tokens that all of them begin with."""
    return serves(model) and not model.active_taps and attends_everywhere(model)


def cut_at_decision(chat: Chat) -> Chat:
    """The chat without what follows its decision position."""
    end = chat.decision_position + 1
    return replace(chat, token_ids=chat.token_ids[:end], segment_ids=chat.segment_ids[:end])


def changed_places(
    chats: Sequence[Chat], positions: Positions, donated: HeadRecording | None = None
) -> list[Bool[np.ndarray, "pos"]]:
    """The changed tokens of each (cut) chat."""
    if donated is not None:
        if tuple(donated.offsets) != tuple(range(1 - len(donated.offsets), 1)):
            raise RimLensError(f"offsets {donated.offsets} are not the last ones up to the decision position.")
        positions = donated.offsets
    found = [places(chat, positions) for chat in chats]
    for chat, where in zip(chats, found, strict=True):
        if not where.any():
            missing = "assistant tag from which a suffix could begin" if positions == "suffix" else "token there"
            raise RimLensError(f"the chat {chat.request[:40]!r} has no {missing} (positions {words_of(positions)!r}).")
    return found


def heads_of(model: LensModel) -> list[Head]:
    """Every head of the model, layer by layer; layers without attention have none."""
    layers = range(model.n_layers)
    if serves(model):
        layers = [i for i, layer in enumerate(sites_of(model).layers) if layer.output is not None]  # type: ignore[assignment]
    return [Head(layer, head) for layer in layers for head in range(model.n_heads)]


def as_metric(model: LensModel, metric: Metric | None) -> tuple[MetricFunction, str]:
    """The metric as a function of decision logits, and its name."""
    if callable(metric):
        return metric, getattr(metric, "__name__", type(metric).__name__)
    tokens = refusal_tokens(model) if metric is None else metric
    return lambda logits: log_odds(logits, tokens.ids), f"refusal score, {tokens}"
