"""What the verdicts say about organisms, where the truth is built in: about effort-minimizing CoTs and about heads.

In `inference-known` an effort-minimizing CoT lowers refusal more than others; in `inference-null` no CoT does. In both
the trained heads carry refusal, and random heads of the same layers do not.
"""

from dataclasses import dataclass

from rim_lens import ablation_test, measure_rim, organisms, verdicts

N_BEHAVIOUR, N_ABLATED, N_CONTROLS = 48, 24, 20
TRUTH = {  # whether the claim is true of the organism
    ("inference-known", "effort_cot"): True,
    ("inference-null", "effort_cot"): False,
    ("inference-known", "heads"): True,
    ("inference-null", "heads"): True,
}


@dataclass(frozen=True)
class OrganismVerdict:
    """One verdict; `true`: whether the claim holds by construction."""

    organism: str
    claim: str
    words: str
    true: bool
    verdict: str
    effect: float
    low: float
    high: float
    unit: str
    n: int


def organism_verdicts(name: str) -> list[OrganismVerdict]:
    """Verdicts on one organism from requests that it was not trained on."""
    organism = organisms.load(name)
    behavior = measure_rim(
        organism.model,
        organism.prompts,
        None,
        None,
        thinking="off",
        prefilled=("effort_minimizing", "careful", "neutral"),
        n=N_BEHAVIOUR,
        max_new_tokens=12,
    )
    tested = ablation_test(
        organism.model,
        list(organism.truth),
        organism.prompts.texts[:N_ABLATED],
        n_controls=N_CONTROLS,
        generated=False,
    )
    table = verdicts({"behavior": behavior, "head_test": tested}).table.set_index("claim")
    found = []
    for (of, claim), true in TRUTH.items():
        if of == name:
            row = table.loc[claim]
            figures = (float(row[column]) for column in ("effect", "low", "high"))
            found.append(
                OrganismVerdict(name, claim, row["words"], true, row["verdict"], *figures, row["unit"], int(row["n"]))
            )
    return found
