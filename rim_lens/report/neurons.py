"""Sections on training time: safety-critical neurons, their causal test, activation shift, RAS and forgetting."""

import pandas as pd

from rim_lens.causal.ablation_test import AblationTest
from rim_lens.plots.forgetting import (
    OUTCOMES,
    PREDICTORS,
    forgetting_scatter,
    predictors,
    quantity,
    ras_by_layer,
    ras_over_series,
)
from rim_lens.plots.neurons import neurons_by_layer, ras_variants, shift_by_layer
from rim_lens.plots.set_effects import in_nats, sentence, set_effects
from rim_lens.plots.style import correlation, interval, number, one_or_range, p_value, percent
from rim_lens.report.blocks import Block, Drawing, Grid, Section, Words
from rim_lens.report.effects import effect_grid, effect_sentence
from rim_lens.report.wording import clearly, joined
from rim_lens.training_time.forgetting import Forgetting
from rim_lens.training_time.ras import Ras
from rim_lens.training_time.safety_neurons import SafetyNeurons
from rim_lens.training_time.shift import ActivationShift

SHOWN_NEURONS = 30
MATHS = "log-likelihood of maths answers"
FEW_SETS = 20  # below which a percentile says little


def set_section(anchor: str, neurons: SafetyNeurons) -> Section:
    """The set, where it lies and how stable it is."""
    low, high = neurons.jaccard_interval
    stable = "stable" if neurons.stable else "not stable"
    text = (
        f"{len(neurons)} of {neurons.n_all} neurons are safety-critical{neurons.chance}; under resampled prompts the "
        f"set is {stable}: Jaccard {neurons.jaccard:.2f} [{low:.2f}, {high:.2f}], n = {neurons.sample}."
    )
    cells = [
        [
            row["neuron"],
            f"{row['n_groups']} / {neurons.n_groups}",
            number(row["difference"], sign=True),
            f"{number(row['f_compared'])} → {number(row['f_forced'])}",
            percent(row["chosen_again"]),
        ]
        for _, row in neurons.table.head(SHOWN_NEURONS).iterrows()
    ]
    columns = [
        "neuron",
        "groups",
        f"mean {neurons.ranking}",
        "activation: compared → refusal forced",
        "chosen again under resampling",
    ]
    note = f"The first {len(cells)} of {len(neurons.table)} neurons that are in the top of any group."
    grid = Grid("Neurons as a table", columns, cells, note)
    return Section(
        anchor,
        "Safety-critical neurons",
        [text],
        [Words(sentence(neurons.caption()) + "."), Drawing(neurons_by_layer(neurons)), grid],
    )


def test_section(anchor: str, test: AblationTest) -> Section:
    """What ablating the neurons does."""
    blocks: list[Block] = [Words(test_words(test))]
    if not test.table["measure"].map(in_nats).all():
        blocks += [Drawing(set_effects(test, method)) for method in dict.fromkeys(test.table["change"])]
    blocks.append(effect_grid(test.table, ["change"]))
    first = test.table[test.table["measure"].isin([test.table["measure"].iloc[0], "maths solved", MATHS])]
    sentences = [
        effect_sentence(row, f"{row['change'].capitalize()} of {len(test.units)} neurons{test.where}")
        for _, row in first.iterrows()
    ]
    return Section(anchor, "What ablating these neurons does", sentences, blocks)


def test_words(test: AblationTest) -> str:
    """How the test was made, and what it can say."""
    rows = test.table
    scored = rows.loc[rows["measure"].str.startswith("refusal score"), "n_controls"]
    likely = rows.loc[rows["measure"] == MATHS, "n_controls"]
    generated = rows.loc[~rows["measure"].map(in_nats), "n_controls"]
    text = (
        f"The {len(test.units)} neurons are silenced{test.where or ' at every position'}, and so are random sets "
        f"with as many neurons of like activity in each layer: {one_or_range(scored)} sets for the refusal score"
    )
    if len(likely):
        text += (
            f", {one_or_range(likely)} for the log-likelihood of right maths answers (mean over their tokens, "
            "thinking off)"
        )
    if not len(generated):
        return f"{text}."
    if not generated.max():
        return f"{text}. What is generated is shown without random sets: their answers would take too long."
    n = one_or_range(generated)
    few = "; so few sets are a look at the noise, no test" if generated.max() < FEW_SETS else ""
    return f"{text}, {n} for what is generated{few}."


def shift_section(anchor: str, shift: ActivationShift) -> Section:
    """Activation shift between two states."""
    row = shift.table.iloc[0]
    text = (
        f"From {shift.states[0]} to {shift.states[1]} the mean activation of {row['n_neurons']} safety neurons "
        f"changes by {percent(row['change'], sign=True)} {interval(row['low'], row['high'], '%')}, n = "
        f"{shift.n_prompts} prompts"
    )
    if shift.n_controls:
        text += (
            f" (random sets: {percent(row['control_change'], sign=True)}, {p_value(row['p'])}, {shift.n_controls} sets)"
        )
    cells = [
        [
            one["scope"],
            f"{one['n_neurons']}",
            f"{number(one['f_before'])} → {number(one['f_after'])}",
            f"{percent(one['change'], sign=True)} {interval(one['low'], one['high'], '%')}",
            *([percent(one["control_change"], sign=True), p_value(one["p"])] if shift.n_controls else []),
        ]
        for _, one in shift.table.iterrows()
    ]
    columns = [
        "layer",
        "neurons",
        "activation before → after",
        "change",
        *(["random sets", "p"] if shift.n_controls else []),
    ]
    grid = Grid("Shift by layer as a table", columns, cells)
    title = f"How safety neurons shift, {' → '.join(shift.states)}"
    return Section(anchor, title, [text + "."], [Drawing(shift_by_layer(shift)), grid])


def ras_section(anchor: str, ras: Ras) -> Section:
    """RAS in all variants."""
    text = (
        f"RAS of {ras.n_neurons} safety neurons is {number(ras.value)} {interval(*ras.interval)}, random sets "
        f"{number(ras.control)} ({p_value(ras.p)}, {ras.n_controls} sets; n = {ras.n_safety} safety and {ras.n_task} "
        "task prompts)."
    )
    cells = [
        [
            f"{row['mean']}, {'over neurons first' if row['averaging'] == 'set' else 'of each neuron first'}",
            f"{number(row['ras'])} {interval(row['low'], row['high'])}",
            f"{number(row['control_mean'])} ± {number(row['control_sd'])}",
            f"{row['percentile']:.0f}",
            p_value(row["p"]),
        ]
        for _, row in ras.table.iterrows()
    ]
    grid = Grid("RAS as a table", ["variant", "RAS", "random sets (mean ± sd)", "percentile", "p"], cells)
    return Section(anchor, "Reciprocal activation shift (RAS)", [text], [Drawing(ras_variants(ras)), grid])


def forgetting_section(anchor: str, forgetting: Forgetting) -> Section:
    """RAS over checkpoints, forgetting against its predictors."""
    outcomes = [name for name in OUTCOMES if name in forgetting.table and forgetting.table[name].nunique() > 1]
    ras, controls = forgetting.table["ras_safety"], forgetting.table["ras_control"]
    same = (
        f"RAS of the {forgetting.n_neurons} safety neurons is {number(ras.iloc[0])} at each of the {len(ras)} "
        f"checkpoints (n = {forgetting.n_safety} safety and {forgetting.n_task} task prompts); the mean of "
        f"{forgetting.n_controls} matched random sets lies between {number(controls.min())} and "
        f"{number(controls.max())}."
    )
    blocks: list[Block] = [Drawing(ras_over_series(forgetting)) if ras.nunique() > 1 else Words(same)]
    if forgetting.ras_layers is not None:
        blocks.append(Drawing(ras_by_layer(forgetting)))
    for outcome in outcomes:
        rows = forgetting.correlations[forgetting.correlations["outcome"] == outcome].set_index("predictor")
        best = forgetting.best.loc[forgetting.best["outcome"] == outcome, "predictor"]
        panels = [name for name in dict.fromkeys(["ras_safety", *best]) if rows["pearson"].notna().get(name, False)]
        blocks += [Drawing(forgetting_scatter(forgetting, name, outcome)) for name in panels]
        blocks.append(Drawing(predictors(forgetting, outcome)))
    blocks += [checkpoint_grid(forgetting), correlation_grid(forgetting)]
    return Section(anchor, "What predicts forgetting", in_short(forgetting, outcomes), blocks)


def in_short(forgetting: Forgetting, outcomes: list[str]) -> list[str]:
    """How RAS correlates with forgetting, and which predictor is best."""
    sentences = []
    for outcome in outcomes:
        rows = forgetting.correlations[forgetting.correlations["outcome"] == outcome].set_index("predictor")
        one = rows.loc["ras_safety"]
        if pd.isna(one["pearson"]):
            sentences.append(
                f"RAS of the safety neurons is the same at all {one['n']} checkpoints, so it predicts nothing."
            )
            continue
        sure = "goes" if clearly(one["pearson_low"], one["pearson_high"], one["pearson_q"]) else "does not clearly go"
        r = correlation(one["pearson"], one["pearson_low"], one["pearson_high"])
        sentences.append(
            f"Over {one['n']} checkpoints RAS of the safety neurons {sure} with the {quantity(outcome)}: r "
            f"= {r}, q = {one['pearson_q']:.2g}."
        )
    best = [
        f"{quantity(row['predictor'])} for the {quantity(row['outcome'])} (r = "
        f"{correlation(row['pearson'], row['low'], row['high'])}, q = {q_of(forgetting, row):.2g}, ahead of every "
        f"other one in at least {100 * row['certainty']:.0f} % of resamples)"
        for _, row in forgetting.best.iterrows()
    ]
    return [*dict.fromkeys(sentences), *([f"Best predictor: {joined(best)}."] if best else [])]


def q_of(forgetting: Forgetting, row: pd.Series) -> float:
    """The q of a predictor's correlation with an outcome: it pays for every predictor that was tried."""
    rows = forgetting.correlations.set_index(["outcome", "predictor"])
    return float(rows.loc[(row["outcome"], row["predictor"]), "pearson_q"])


def checkpoint_grid(forgetting: Forgetting) -> Grid:
    """Every checkpoint with its outcome and predictors."""
    columns = [name for name in (*OUTCOMES, *PREDICTORS) if name in forgetting.table]
    cells = [[row["checkpoint"], *(number(row[name]) for name in columns)] for _, row in forgetting.table.iterrows()]
    titles = {**OUTCOMES, **PREDICTORS}
    return Grid("Checkpoints as a table", ["checkpoint", *(titles[name] for name in columns)], cells)


def correlation_grid(forgetting: Forgetting) -> Grid:
    """Every predictor's correlations."""
    cells = [
        [
            OUTCOMES.get(row["outcome"], row["outcome"]),
            PREDICTORS.get(row["predictor"], row["predictor"]),
            f"{row['n']}",
            *(
                f"{number(row[kind])} {interval(row[f'{kind}_low'], row[f'{kind}_high'])}, {p_value(row[f'{kind}_p'])}"
                for kind in ("pearson", "spearman")
            ),
        ]
        for _, row in forgetting.correlations.iterrows()
    ]
    return Grid("Correlations as a table", ["outcome", "predictor", "n", "Pearson's r", "Spearman's ρ"], cells)
