"""check_model: everything the library says about a model, computed a second time on that model, in seconds.

1. Two short chats of different length are rendered (plain texts where there is no chat template).
2. Each is run alone, without padding, taps or batches, with plain torch hooks where something is read or zeroed: the
   reference (`plain_tree` for transformers models, `plain_hooked` for objects with TransformerLens' hook points).
3. The public functions compute the same in a padded batch, through every way the model allows.
4. The worst difference is held against a tolerance. What the library refuses is "refused", with its reason.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

import pandas as pd
import torch

from rim_lens.check.leftovers import changed_names, state_of
from rim_lens.check.outcome import Measured, Outcome
from rim_lens.check.parts import head_ablation, head_sweep, neuron_ablation, neuron_moments
from rim_lens.check.passes import padded_batch, rows, while_read
from rim_lens.check.plain_hooked import PlainHooked
from rim_lens.check.plain_tree import PlainTree
from rim_lens.check.subject import COT, REQUESTS, Subject, plain_text_chat
from rim_lens.check.texts import generation, segments
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Manifest, Result

CHECKS: dict[str, Callable[[Subject], Measured]] = {
    "segments": segments,
    "logits, padded batch": padded_batch,
    "logits while read, fast": partial(while_read, backend="fast"),
    "logits while read, hooks": partial(while_read, backend="hooks"),
    "attention rows, fast": partial(rows, backend="fast"),
    "attention rows, hooks": partial(rows, backend="hooks"),
    "head ablation, fast": partial(head_ablation, backend="fast"),
    "head ablation, hooks": partial(head_ablation, backend="hooks"),
    "head sweep": head_sweep,
    "neuron moments, fast": partial(neuron_moments, backend="fast"),
    "neuron moments, hooks": partial(neuron_moments, backend="hooks"),
    "neuron ablation, fast": partial(neuron_ablation, backend="fast"),
    "neuron ablation, hooks": partial(neuron_ablation, backend="hooks"),
    "generation": partial(generation, ablated=False),
    "generation without a head": partial(generation, ablated=True),
}


@dataclass(frozen=True, eq=False)
class ModelCheck(Result):
    """What holds of the library's measurements on one model.

    `table` has one row per check: `holds` ("holds", "fails", "refused"), the `worst` difference found, the `tolerance`,
    `n` of what was `counted`, and `why` it is refused or fails. Differences of logits and neurons are in standard
    deviations of the reference, of attention rows absolute; of segments and generation they count tokens or faults.
    """

    table: pd.DataFrame
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether nothing fails; what is refused is not wrong."""
        return not (self.table["holds"] == "fails").any()

    def caption(self) -> str:
        """How many checks hold, fail and are refused."""
        count = self.table["holds"].value_counts()
        said = ", ".join(f"{count[one]} {one}" for one in ("holds", "fails", "refused") if one in count)
        return f"{said}; {self.seconds:.1f} s on {self.manifest.model.get('device', '')}"


@torch.no_grad()
def check_model(model: LensModel) -> ModelCheck:
    """Compute what the library says about this model a second time, with plain torch hooks, and compare.

    Returns a result whose `holds` is True when nothing fails.

    Raises:
        RimLensError: the plain model itself cannot be run or taken apart, so that there is nothing to compare with.

    """
    begin = perf_counter()
    bridge = _booted_bridge(model)
    subject = subject_of(model)
    first = subject.clean[0]
    before = state_of(model, bridge)
    outcomes = [run(name, check, subject) for name, check in CHECKS.items()]
    outcomes.append(run("nothing left", partial(nothing_left, before=before, bridge=bridge, first=first), subject))
    seconds = perf_counter() - begin
    return ModelCheck(
        table=pd.DataFrame([asdict(outcome) for outcome in outcomes]),
        seconds=seconds,
        manifest=Manifest.collect(model, seconds={"check_model": seconds}),
    )


def run(name: str, check: Callable[[Subject], Measured], subject: Subject) -> Outcome:
    """One check: what the library refuses is refused, any other exception is a failure."""
    try:
        return check(subject).named(name)
    except RimLensError as error:
        return Outcome(name, "refused", float("nan"), float("nan"), 0, "", str(error))
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0][:200]
        return Outcome(name, "fails", float("nan"), float("nan"), 0, "", f"{type(error).__name__}: {reason}")


def nothing_left(subject: Subject, before: dict[str, Any], bridge: Any, first: torch.Tensor) -> Measured:
    """No hook, switch or weight is other than before, and the plain model gives the same logits bit for bit."""
    after = state_of(subject.model, bridge)
    changed = changed_names(before, after)
    try:
        if not torch.equal(subject.plain.logits(subject.chats[0]), first):
            changed.append("logits of the plain model")
    except Exception as error:  # something left behind may also break the pass; it is not refused, it is wrong
        changed.append(f"the plain model raises {type(error).__name__}")
    return Measured(len(changed), 0, len(after), "hooks, switches and weights", "; ".join(changed[:3]))


def subject_of(model: LensModel) -> Subject:
    """The model with its reference and two chats."""
    plain = PlainHooked(model) if model.hf is None else PlainTree(model)
    try:
        chats = [*model.render(REQUESTS[0], thinking="prefilled", cot=COT), *model.render(REQUESTS[1])]
    except RimLensError as error:
        return Subject(model, plain, [plain_text_chat(model, text) for text in REQUESTS], False, str(error))
    return Subject(model, plain, chats, True)


def _booted_bridge(model: LensModel) -> Any:
    """The bridge after a first pass, in which TransformerLens puts on hooks of its own; None where there is none."""
    try:
        bridge = model.bridge
    except RimLensError:
        return None
    with suppress(Exception):  # what fails here fails again in the checks that go through the bridge, by name
        bridge(torch.zeros(1, 2, dtype=torch.long, device=model.device), return_type="logits")
    return bridge
