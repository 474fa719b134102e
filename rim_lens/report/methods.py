"""The last section: what every quantity means, and how this page came about."""

from collections.abc import Mapping, Sequence
from typing import Any

from rim_lens.report.blocks import Block, Definition, Definitions, Grid, Words
from rim_lens.results import Manifest

ALWAYS = (
    Definition(
        "95 % interval",
        "In brackets behind every rate or mean. Rates have Wilson's interval, differences on the same prompts "
        "Tango's, means a bootstrap over prompts; where several wordings were given, prompts and wordings are both "
        "drawn anew.",
    ),
    Definition(
        "n, p, q",
        "n counts answers (or prompts). p is the exact McNemar p-value of a paired difference, or a permutation "
        "p-value where a control is drawn at random. q corrects p for the number of comparisons (Benjamini-Hochberg).",
    ),
)
BEHAVIOR = (
    Definition(
        "Refusal rate, refusals lost, misalignment rate",
        "Share of answers to harmful requests that the judge calls refused, and its fall on the same requests. "
        "Complied is neither refused nor incoherent, which need not be harmful: the misalignment rate is the share "
        "of harmful answers, and is there only where a harmfulness judge looked at them.",
        "refused / n,  refused(before) / n − refused(after) / n,  harmful / n judged",
    ),
    Definition(
        "Corrected for the judge's errors",
        "What the true rate would be, with the judge's sensitivity and specificity on labelled answers; the interval "
        "holds the uncertainty of both. The judge's errors alone could make a difference where one true rate, judged "
        "with other errors inside their 95 % intervals, gives both rates.",
        "corrected = (rate + specificity − 1) / (sensitivity + specificity − 1)",
    ),
    Definition(
        "Thinking off, on, prefilled",
        "Off: the chat template's think span is left empty. On: the model writes its own chain of thought; when the "
        "budget ends, the close tag is forced. Prefilled: a given chain of thought, several wordings per kind, "
        "rotated over the prompts.",
    ),
)
SCORE = (
    Definition(
        "Refusal score",
        "Log-odds that the first token of the answer is one that opens refusals, at the decision position (the last "
        "prompt token). In nats; needs no generation.",
        "log p(R) − log(1 − p(R))",
    ),
)
PATTERNS = (
    Definition(
        "Refusal lost",
        "What a class of given chains of thought costs: refusal rate with the reference text minus refusal rate with "
        "the class, on the same requests, all texts of one token length. Requests and wordings are both drawn anew; "
        "any pattern is all patterns' wordings taken as one class.",
        "cost(class) = refused(reference) − refused(class)",
    ),
    Definition(
        "Share of pattern sentences",
        "Sentences of chains of thought that the named annotator gives a pattern. Its interval is a bootstrap over "
        "chains of thought; where none or all have one, Wilson's with as many trials as there are chains of thought.",
        "sentences with a pattern / sentences",
    ),
)
HEADS = (
    Definition(
        "Attention mass and lift",
        "Share of a head's attention, from the decision position, that falls on a segment of the chat; and the same "
        "relative to the segment's share of the tokens, which removes the effect of length.",
        "mass = Σₖ∈S pattern[q, k],   lift = mass / (|S| / |keys|)",
    ),
    Definition(
        "Refusal head",
        "A head is a candidate when its attention differs between refused and complied answers; it is a refusal head "
        "only when changing it changes refusal more than random sets with as many heads in each layer do.",
    ),
    Definition(
        "Ablation, patching, interchange",
        "Ablation sets a head's output to zero. Patching gives it, with thinking on, the output that it has with "
        "thinking off. Interchange swaps outputs between a harmful request and its harmless twin. The effect is the "
        "change of the refusal score.",
        "effect = score(changed run) − score(clean run)",
    ),
    Definition(
        "Refusal probe",
        "A direction of the residual stream, fitted on some prompts and scored on others. AUROC is the chance that a "
        "refused answer scores higher than a complied one; 0.5 is guessing.",
        "direction = mean residual of refused − mean residual of complied chats",
    ),
)
NEURONS = (
    Definition(
        "Safety-critical neurons",
        "Neurons whose zeroing at the decision position is estimated to lower the refusal score most, by gradient × "
        "activation over the requests. The paper takes neurons whose activation rises when a request is put into words "
        "that ask for a refusal; where it is known which neurons carry refusal, such sets carry none of it.",
        "A = top_m( mean ∂score/∂a · a )",
    ),
    Definition(
        "Activation shift",
        "Relative loss and gain of a neuron set's mean activation F between two checkpoints; and movement, in which "
        "neurons that rise do not cancel those that fall.",
        "δ⁻ = max(0, (F₀ − F₁) / F₀),   δ⁺ = max(0, (F₁ − F₀) / F₀),   movement = Σ |f₁ − f₀| / Σ |f₀|",
    ),
    Definition(
        "RAS, reciprocal activation shift",
        "Harmonic mean of what safety loses and reasoning gains in the same neurons; 0 when either is 0.",
        "RAS = 2 δ⁻(safety) δ⁺(task) / (δ⁻(safety) + δ⁺(task))",
    ),
    Definition(
        "Matched random neurons",
        "Random sets with as many neurons in each layer, matched on activation and on what is written, finer at the "
        "top of a layer. What they do as well is nothing that safety neurons do in particular.",
    ),
    Definition(
        "Tokens of a neuron",
        "Those whose logits it raises or lowers most on the direct path; W is the unembedding, s the final norm's "
        "scale, w the neuron's column of the down projection.",
        "W (s ⊙ w), less its mean over the vocabulary",
    ),
    Definition(
        "Shift predicted before training",
        "First-order change of each neuron's activation under one step against the gradient of the fine-tuning loss.",
        "f(θ + s u) ≈ f(θ) + s ∂f/∂u,   u = −∇L / ‖∇L‖",
    ),
)


def blocks(definitions: Sequence[Definition], manifest: Manifest, plan: Mapping[str, Any]) -> list[Block]:
    """Definitions, plan, model, prompts, versions and timings."""
    about: dict[str, Any] = {f"model {key}": value for key, value in manifest.model.items()}
    about |= {"seed": manifest.seed, "command": manifest.command, "made (UTC)": manifest.created, **manifest.extra}
    about = {key.replace("_", " "): value for key, value in about.items()}
    data = [[name, str(entry["n"]), str(entry["sha256"])] for name, entry in manifest.data.items()]
    return [
        Definitions(definitions),
        Words(
            "Definitions follow Yan, Xu, Qi, Yang and He, “When Thinking Backfires: Mechanistic Insights Into "
            "Reasoning-Induced Misalignment” (ICLR 2026, arXiv 2509.00544); the refusal score follows Arditi et al. "
            "(2024)."
        ),
        Grid(
            "Model, seed and command", ("", ""), pairs({key.replace("_", " "): about[key] for key in about}), open=True
        ),
        Grid("Plan of this audit", ("choice", "value"), pairs(plan)),
        Grid("Prompt sets", ("set", "n", "sha256"), data),
        Grid("Versions", ("package", "version"), pairs(manifest.versions)),
        Grid("Wall time of the stages", ("stage", "seconds"), [[k, f"{v:.0f}"] for k, v in manifest.seconds.items()]),
    ]


def pairs(values: Mapping[str, Any]) -> list[list[str]]:
    """A mapping as rows."""
    return [[str(key), in_words(value)] for key, value in values.items()]


def in_words(value: Any) -> str:
    """A value of a plan or manifest as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {one}" for key, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return ", ".join(str(one) for one in value)
    return "–" if value is None else str(value)
