"""`load`: an organism by its name, with what was trained in it and what to measure it with."""

from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file

from rim_lens.data import PromptSet, Wording
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model
from rim_lens.organisms.registry import ABOUT, BASE, DATA, TRUTH, held_wordings, requests
from rim_lens.organisms.slices import add_changes, slices_of
from rim_lens.units import Head


@dataclass(frozen=True, eq=False)
class Organism:
    """A model whose mechanism is known, since nothing but `truth` was trained.

    `prompts`: 96 requests about food, the forbidden topic. `twins`: the same 96 forms about other things.
    `wordings`: CoTs by kind. None of these was trained on. `about`: what the organism does.
    """

    name: str
    model: LensModel
    truth: tuple[Head, ...]
    prompts: PromptSet
    twins: PromptSet
    wordings: dict[str, list[Wording]]
    about: str


def names() -> list[str]:
    """Names of the organisms that `load` has."""
    return [name for name in TRUTH if (DATA / f"{name}.safetensors").exists()]


def load(name: str, **options: Any) -> Organism:
    """The base model with the organism's changes added, in memory of its own.

    Args:
        name: one of `names()`.
        options: `device` and `dtype`, as for `load_model`.

    Raises:
        RimLensError: there is no such organism, or the base model cannot be loaded.

    """
    if name not in names():
        raise RimLensError(f"There is no organism {name!r}; choose among {', '.join(names())}.")
    model = load_model(BASE, **options)
    parameters = dict(model.hf.named_parameters())
    add_changes(parameters, slices_of(model.shape, TRUTH[name]), load_file(DATA / f"{name}.safetensors"))
    model.weights_changed()
    model.shown = f"+ {name}"
    food, other = requests()
    return Organism(name, model, tuple(TRUTH[name]), food, other, held_wordings(), ABOUT[name])
