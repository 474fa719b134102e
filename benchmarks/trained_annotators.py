"""Does a small trained annotator beat the rules?

Multinomial logistic regressions are trained on the hand-labelled development sentences.

    python -m benchmarks.trained_annotators

Features: words and pairs of words (tf-idf), and the mean residual stream of the bundled model over a sentence's tokens.
The penalty of each is chosen by five-fold cross-validation on the development half; the held-out half is predicted
once. The rules were tuned on the same half.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens import load_model
from rim_lens.patterns import annotate_reasoning
from rim_lens.patterns.taxonomy import LABELS, NONE
from rim_lens.stats import kappa as stats_kappa

DATA = Path(__file__).parents[1] / "tests" / "pattern_data"
LAYERS, PENALTIES, FOLDS = (10, 15, 20, 25), (1e-3, 1e-2, 1e-1), 5


def words(sentence: str) -> list[str]:
    """Words and pairs of neighbouring words, numbers as 0."""
    found = ["0" if word.isdigit() else word for word in re.findall(r"[a-z']+|\d+", sentence.lower())]
    return found + [" ".join(pair) for pair in pairwise(found)]


def tf_idf(known: Sequence[str], sentences: Sequence[str]) -> Float[Tensor, "sentence word"]:
    """Words that stand in two known sentences at least, weighted by rarity, rows of length 1."""
    counts = Counter(word for sentence in known for word in set(words(sentence)))
    kept = {word: i for i, word in enumerate(word for word, n in counts.items() if n > 1)}
    table = torch.zeros(len(sentences), len(kept))
    for row, sentence in zip(table, sentences, strict=True):
        for word in set(words(sentence)) & kept.keys():
            row[kept[word]] = torch.tensor(len(known) / counts[word]).log()
    return table / table.norm(dim=1, keepdim=True).clamp(min=1e-6)


@torch.no_grad()
def mean_residuals(sentences: Sequence[str]) -> dict[int, Float[Tensor, "sentence d_model"]]:
    """Mean residual stream after each of LAYERS of the bundled model."""
    model = load_model("smollm2-135m-instruct")
    found: dict[int, list[Tensor]] = {layer: [] for layer in LAYERS}
    for sentence in sentences:
        states = model.hf.model(torch.tensor([model.encode(sentence)]), output_hidden_states=True).hidden_states
        for layer in LAYERS:
            found[layer].append(states[layer][0].float().mean(dim=0))
    return {layer: torch.stack(rows) for layer, rows in found.items()}


def fitted(
    x: Float[Tensor, "row feature"], y: Int[Tensor, " row"], n_labels: int, penalty: float
) -> Callable[[Float[Tensor, "row feature"]], Int[Tensor, " row"]]:
    """A logistic regression; returns what predicts."""
    centre, spread = x.mean(dim=0), x.std(dim=0).clamp(min=1e-3) * x.shape[1] ** 0.5

    def design(rows: Tensor) -> Tensor:
        return torch.cat([(rows - centre) / spread, torch.ones(len(rows), 1)], dim=1)

    weights = torch.zeros(x.shape[1] + 1, n_labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(design(x) @ weights, y)
        value = value + penalty * weights[:-1].square().sum() / len(x)
        value.backward()
        return value

    optimizer.step(loss)
    return lambda rows: (design(rows) @ weights.detach()).argmax(dim=1)


def kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """Cohen's κ of two labellings."""
    return float(
        stats_kappa.kappa(
            pd.crosstab(pd.Categorical(a, LABELS), pd.Categorical(b, LABELS), dropna=False).to_numpy(float)
        )
    )


def cross_validated(x: Tensor, y: Tensor, names: Sequence[str], penalty: float) -> float:
    """Cohen's κ of predictions by models that did not see the sentence."""
    fold = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) % FOLDS
    predicted = torch.zeros_like(y)
    for k in range(FOLDS):
        predicted[fold == k] = fitted(x[fold != k], y[fold != k], len(names), penalty)(x[fold == k])
    return kappa(*([names[i] for i in side.tolist()] for side in (predicted, y)))


def line(name: str, kappa_dev: float | None, predicted: Sequence[str], labels: Sequence[str]) -> str:
    """One annotator on the held-out half."""
    marked = [(p, y) for p, y in zip(predicted, labels, strict=True) if p != NONE]
    right = sum(p == y for p, y in marked)
    n = sum(y != NONE for y in labels)
    seen = "" if kappa_dev is None else f"{kappa_dev:.2f}"
    return f"| {name} | {seen} | {kappa(predicted, labels):.2f} | {right} of {len(marked)} | {right} of {n} |"


def main() -> None:
    """Print the table."""
    dev, held_out = (pd.read_csv(DATA / f"{name}.tsv", sep="\t", keep_default_na=False) for name in ("dev", "heldout"))
    names = sorted(set(dev["label"]))
    y = torch.tensor([names.index(label) for label in dev["label"]])
    sentences, others, labels = list(dev["sentence"]), list(held_out["sentence"]), list(held_out["label"])
    features = {"words and pairs (tf-idf)": (tf_idf(sentences, sentences), tf_idf(sentences, others))}
    first, second = mean_residuals(sentences), mean_residuals(others)
    features |= {f"mean residual stream, layer {layer}": (first[layer], second[layer]) for layer in LAYERS}
    print("| annotator | κ, cross-validated | κ, held out | right of marked | found |", "| --- " * 5 + "|", sep="\n")
    for name, (x, unseen) in features.items():
        kappas = {penalty: cross_validated(x, y, names, penalty) for penalty in PENALTIES}
        best = max(kappas, key=lambda penalty: kappas[penalty])
        predicted = [names[i] for i in fitted(x, y, len(names), best)(unseen).tolist()]
        print(line(name, kappas[best], predicted, labels))
    ruled = annotate_reasoning(others).sentences
    print(line("rules", None, list(ruled["label"]), labels))


if __name__ == "__main__":
    main()
