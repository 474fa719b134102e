"""Routing and ablation find the expert that was trained to refuse, and shuffled labels find none."""

import numpy as np
import pytest
import torch
from trained_mixture import LAYER, N_EXPERTS, trained_mixture

from rim_lens import ablation_test, expert_load, refusal_score
from rim_lens.inference_time.expert_load import expert_neurons, matched_experts


@pytest.fixture(scope="module")
def mixture():
    return trained_mixture(0)


@pytest.fixture(scope="module")
def chats(mixture):
    return mixture.model.render([*mixture.harmful, *mixture.harmless], thinking="off")


@pytest.fixture(scope="module")
def labels(mixture, chats):
    """What the model answers: it refuses what it was trained to refuse."""
    scores = refusal_score(mixture.model, chats, mixture.tokens)
    return np.where(scores > 0, "refused", "complied").tolist()


def test_it_refuses_what_it_was_trained_to_refuse_and_only_its_expert_was_trained(mixture, labels):
    n = len(mixture.harmful)
    assert labels[:n].count("refused") >= 0.9 * n
    assert labels[n:].count("complied") >= 0.9 * n
    experts = mixture.model.hf.model.layers[LAYER].mlp.experts
    before = experts.down_proj[mixture.expert[1]].clone()
    chats = mixture.model.render(mixture.harmful, thinking="off")
    with torch.no_grad():
        experts.down_proj[mixture.expert[1]] = 0
    assert (refusal_score(mixture.model, chats, mixture.tokens) < 0).mean() > 0.9
    with torch.no_grad():
        experts.down_proj[mixture.expert[1]] = before


def test_load_by_label_names_the_expert(mixture, chats, labels):
    found = expert_load(mixture.model, chats, labels, n_permutations=200)
    table = found.table[found.table["layer"] == LAYER].dropna(subset=["effect"])
    best = table.loc[(table["load_refused"] - table["load_complied"]).abs().idxmax()]
    assert best["expert"] == mixture.expert[1]
    assert best["load_refused"] > best["load_complied"]
    assert best["q"] < 0.05
    shuffled = list(np.random.default_rng(0).permutation(labels))
    assert (expert_load(mixture.model, chats, shuffled, n_permutations=200).table["q"].dropna() > 0.05).all()


def test_ablation_names_the_expert_beside_matched_ones(mixture, chats):
    load = expert_load(mixture.model, chats)
    harmful = chats[: len(mixture.harmful)]

    def test_of(expert):
        controls = matched_experts(mixture.model, load, [expert], n_sets=4)
        rows = expert_neurons(mixture.model, [expert])
        options = {"controls": controls, "n_controls": 4, "generated": False, "tokens": mixture.tokens}
        return ablation_test(mixture.model, rows, harmful, **options).table.iloc[0]

    row = test_of(mixture.expert)
    assert row["high"] < -1
    assert row["effect"] < row["control_low"] - 1
    assert row["percentile"] == 0
    other = test_of((LAYER, (mixture.expert[1] + 1) % N_EXPERTS))
    assert abs(other["effect"]) < 0.5 * abs(row["effect"])
