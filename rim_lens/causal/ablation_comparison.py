"""Heads, neurons and a direction side by side: one table of what ablating each of them does to refusal and to maths.

Each is tested by `ablation_test` on the same prompts, with the same measures, at the same positions and against control
sets of its own kind. A set that carries refusal takes more of it than its controls do, at less cost to harmless
requests and to maths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from rim_lens.causal.ablation_test import ablation_test
from rim_lens.chat.segments import Thinking
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg


@dataclass(frozen=True, eq=False)
class AblationComparison(Result):
    """Effects of several ablations on the same measures.

    `table`: the rows of each `AblationTest` with the ablation's name in `units` and its `kind`; q is over all ablations
    of one measure. `prompts`: every prompt before and after, as there.
    """

    figure: ClassVar = "set_effects:compared_effects"

    table: pd.DataFrame
    prompts: pd.DataFrame

    def caption(self) -> str:
        """The first measure under each ablation."""
        first = self.table[self.table["measure"] == self.table["measure"].iloc[0]]
        effects = "; ".join(
            f"{row['units']} {row['effect']:+.3g} [{row['low']:.3g}, {row['high']:.3g}] (p = {row['p']:.2g}, "
            f"{row['n_controls']} control sets)"
            for _, row in first.iterrows()
        )
        return f"{first['measure'].iloc[0]}, n = {first['n'].iloc[0]}: {effects}."


def compare_ablations(
    model: LensModel,
    units: Mapping[str, Any],
    harmful: Prompts,
    *,
    thinking: Thinking = "off",
    maths_thinking: Thinking = "off",
    seed: int = 0,
    **options: Any,
) -> AblationComparison:
    """Ablate heads, neurons and directions one after the other and measure the same each time.

    Args:
        model: the model.
        units: what `ablation_test` takes, by the name that it gets in the table.
        harmful: requests, or chats up to the decision position.
        thinking: mode of requests that are not rendered yet.
        maths_thinking: mode of the maths problems, the same for all.
        seed: of control sets and bootstraps.
        options: further arguments of `ablation_test`, except `doses` and `controls`, which are of one kind.

    Raises:
        RimLensError: nothing to ablate, `doses` or `controls`, and what `ablation_test` raises.
    """
    wrong = sorted({"doses", "controls"} & set(options))
    if not units or wrong:
        what = f"takes no {wrong[0]}=, which is of one kind of unit" if wrong else "needs at least one set of units"
        raise RimLensError(f"compare_ablations {what}; pass a name for each set.")
    options |= {"thinking": thinking, "maths_thinking": maths_thinking, "seed": seed}
    tests = {name: ablation_test(model, one, harmful, **options) for name, one in units.items()}

    def joined(part: str) -> pd.DataFrame:
        tables = []
        for name, test in tests.items():
            one = getattr(test, part).copy()
            one.insert(0, "units", name)
            one.insert(1, "kind", test.kind)
            tables.append(one)
        return pd.concat(tables, ignore_index=True)

    table = joined("table")
    table["q"] = table.groupby("measure", sort=False)["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
    return AblationComparison(table, joined("prompts"), manifest=Manifest.collect(model, seed=seed))
