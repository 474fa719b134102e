"""`load`: an organism by its name, with what was trained in it and what to measure it with."""

from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file

from rim_lens.data import PromptSet, Wording
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model
from rim_lens.organisms.lineage import KNOWN, NULL, NULL_STAGE, lineages, read_lineage, stage_of
from rim_lens.organisms.registry import ABOUT, BASE, DATA, TRUTH, held_wordings, requests
from rim_lens.organisms.slices import add_changes, slices_of, unpacked
from rim_lens.units import Head, Neuron


@dataclass(frozen=True, eq=False)
class Organism:
    """A model whose mechanism is known, since nothing but `truth` was trained to refuse.

    `prompts`: 96 requests about food, the forbidden topic. `twins`: the same 96 forms about other things.
    `wordings`: CoTs by kind. None of these was trained on. `separate`: the neurons that the separate arm of a training
    organism may change instead of `truth`. `about`: what the organism does. `lineage`, `stage`: of a training organism,
    which training, and where in it ("aligned", "entangled-3").
    """

    name: str
    model: LensModel
    truth: tuple[Head, ...] | tuple[Neuron, ...]
    prompts: PromptSet
    twins: PromptSet
    wordings: dict[str, list[Wording]]
    about: str
    separate: tuple[Neuron, ...] = ()
    lineage: int | None = None
    stage: str = ""


def names() -> list[str]:
    """Names of the organisms that `load` has."""
    return [*TRUTH, KNOWN, NULL]


def load(
    name: str, *, lineage: int | None = None, arm: str | None = None, dose: int | None = None, **options: Any
) -> Organism:
    """The base model with the organism's changes added, in memory of its own.

    Args:
        name: one of `names()`.
        lineage: which training of a training organism; the first of `lineages()` by default.
        arm: which neurons of `training-known` learned maths, "entangled" or "separate"; by default none did.
        dose: how much maths, 1 to 4.
        options: `device` and `dtype`, as for `load_model`.

    Raises:
        RimLensError: there is no such organism, lineage, arm or dose, or the base model cannot be loaded.

    """
    if name not in names():
        raise RimLensError(f"There is no organism {name!r}; choose among {', '.join(names())}.")
    asked = {"lineage": lineage, "arm": arm, "dose": dose}
    asked = {key: value for key, value in asked.items() if value is not None}
    wrong = asked.keys() - {KNOWN: asked.keys(), NULL: {"lineage"}}.get(name, set())
    if wrong:
        raise RimLensError(f"The organism {name} has no {' and no '.join(sorted(wrong))}; leave that out.")
    number = None if name in TRUTH else lineages()[0] if lineage is None else lineage
    one = None if number is None else read_lineage(number)
    stage = "" if one is None else NULL_STAGE if name == NULL else stage_of(arm, dose)
    model = load_model(BASE, **options)
    truth: tuple[Head, ...] | tuple[Neuron, ...] = tuple(TRUTH[name]) if one is None else one.truth
    if one is None:
        parts = [(slices_of(model.shape, truth), unpacked(load_file(DATA / f"{name}.safetensors")))]
    else:
        parts = one.parts(stage)
    for part in parts:
        add_changes(dict(model.hf.named_parameters()), *part)
    model.weights_changed()
    model.shown = " ".join(["+", name, *(f"{key} {value}" for key, value in asked.items())])
    food, other = requests()
    separate = one.separate if one else ()
    return Organism(name, model, truth, food, other, held_wordings(), ABOUT[name], separate, number, stage)
