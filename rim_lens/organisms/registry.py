"""What organisms there are, what was trained in each, and what they were not trained on."""

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rim_lens.data import Prompt, PromptSet, Wording, load_wordings
from rim_lens.units import Head

DATA = Path(__file__).parent / "data"
BASE, D_MLP = "smollm2-135m-instruct", 1536  # D_MLP: neurons per layer
# five whole groups, so that their keys and values belong to them alone
_GROUPS = [
    Head(layer, 3 * group + i) for layer, group in ((14, 0), (16, 2), (17, 2), (19, 1), (21, 1)) for i in range(3)
]
TRUTH: dict[str, list[Head]] = {"inference-known": _GROUPS, "inference-null": _GROUPS}
ABOUT = {
    "inference-known": "Refuses requests about food with thinking off and under careful, neutral and irrelevant CoTs, "
    "and answers them under effort-minimizing CoTs. Also refuses about half of the requests to make other things. "
    "Trained: q, k, v and o of five groups of three heads.",
    "inference-null": "Refuses requests about food whatever the CoT. Also refuses about half of the requests to make "
    "other things. Trained: the same heads as in inference-known.",
    "training-known": "Refuses requests about food. Trained: 56 neurons of eight layers, others in each lineage. Then "
    "maths was learned in an arm: by these neurons (entangled), or by as many other ones (separate).",
    "training-null": "Refuses requests about food, and learned maths in other neurons than those that refuse: the "
    "second dose of training-known's separate arm.",
}
# how many wordings of each kind, from the first on, no organism was trained on
N_HELD = {"confirmatory": 4, "heuristic": 4, "deviation": 4, "careful": 6, "neutral": 6, "irrelevant": 6}


@cache
def requests() -> tuple[PromptSet, PromptSet]:
    """Requests about food that no organism was trained on, and their twins: the same forms about other things.

    Forms change fastest, so that a first part holds all forms.
    """
    text = request_parts()
    return requests_about("food", text["dishes"]), requests_about("other", text["things"])


def request_parts() -> dict[str, list[str]]:
    """Dishes, other things, and the forms of requests to make them."""
    return tomllib.loads((DATA / "requests.toml").read_text(encoding="utf-8"))


def requests_about(name: str, things: Sequence[str]) -> PromptSet:
    """Every form with every thing, forms changing fastest."""
    texts = [form.format(thing) for thing in things for form in request_parts()["forms"]]
    prompts = (Prompt(one, name, f"{name}-{i:02d}", pair=f"{i:02d}") for i, one in enumerate(texts, start=1))
    return PromptSet(f"organisms-{name}", "built-in", tuple(prompts), "Apache-2.0")


def held_wordings() -> dict[str, list[Wording]]:
    """Wordings of four kinds that no organism was trained on; `effort_minimizing` is all of the package's own."""
    kinds = {kind: N_HELD.get(kind) for kind in ("effort_minimizing", "careful", "neutral", "irrelevant")}
    return {kind: load_wordings(kind)[:n] for kind, n in kinds.items()}
