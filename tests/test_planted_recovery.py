"""A short version of docs/trust.md's recovery.

One seed of the families that the other tests of planted heads leave out.
"""

from functools import cache

import numpy as np
import pytest
from planted import COT_HEAD, LENGTH_HEAD, REFUSAL_HEAD, SECOND_HEAD, planted_model
from planted_neurons import planted_neurons

from benchmarks.trust.recovery import Recovery, neurons
from benchmarks.trust.tables import recovery_table
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.inference_time.interchange import interchange_sweep
from rim_lens.inference_time.patching import patching_sweep
from rim_lens.inference_time.refusal_heads import find_refusal_heads
from rim_lens.inference_time.sweep import ablation_sweep
from rim_lens.intervene import ablate_heads

FEW = 8


@cache
def family(name):
    model, truth = planted_model(1, 32, family=name)
    return model, truth, RefusalTokens((truth.refusal_token,), ("Sorry",))


def test_redundant_heads_are_silent_alone_and_loud_together():
    model, truth, tokens = family("redundant")
    chats = model.render(truth.harmful[:FEW], thinking="off")
    clean = refusal_score(model, chats, tokens)
    with ablate_heads(model, [REFUSAL_HEAD, SECOND_HEAD]):
        both = refusal_score(model, chats, tokens) - clean
    alone = ablation_sweep(model, chats, tokens).effect.mean(axis=0)
    assert both.mean() < -4
    assert abs(alone[REFUSAL_HEAD]) < 0.2 * abs(both.mean())
    assert abs(alone[SECOND_HEAD]) < 0.2 * abs(both.mean())
    twins = model.render(truth.harmless[:FEW], thinking="off")
    found = interchange_sweep(model, chats, twins, tokens, n_top=4)
    assert set(found.ranked(2)) == {REFUSAL_HEAD, SECOND_HEAD}
    first = found.pairs[found.pairs["intervention"] == "zero"].iloc[0]
    assert {first["a"], first["b"]} == {"L1H2", "L1H5"}
    assert first["interaction"] < 0
    assert first["high"] < 0


def test_sweeps_rank_the_planted_heads_first_and_nothing_stands_out_of_the_null():
    model, truth, tokens = family("plain")
    off, on = (
        model.render(truth.harmful[:FEW]),
        model.render(truth.harmful[:FEW], thinking="prefilled", cot=truth.cots[:FEW]),
    )
    assert set(ablation_sweep(model, on, tokens).ranked(2)) == {REFUSAL_HEAD, COT_HEAD}
    planted = patching_sweep(model, off, on, tokens)
    assert set(planted.ranked(2)) == {REFUSAL_HEAD, COT_HEAD}
    nothing, truth, tokens = family("null")
    on = nothing.render(truth.harmful[:FEW], thinking="prefilled", cot=truth.cots[:FEW])
    null = ablation_sweep(nothing, on, tokens).table
    assert null["effect"].abs().max() < 0.2 * ablation_sweep(model, off, tokens).table["effect"].abs().max()


def test_a_head_that_follows_the_length_of_the_cot_is_no_candidate():
    """Complied answers have the longer CoTs here, and nothing else.

    The length head's mass follows, its lift does not.
    """
    model, truth, _ = family("null")
    rng = np.random.default_rng(0)
    longer = np.arange(32) % 2 == 0
    cots = [" ".join(rng.choice(["weigh", "risk", "check", "law"], 14 if long else 5)) for long in longer]
    chats = model.render(truth.harmful, thinking="prefilled", cot=cots)
    labels = np.where(longer, "complied", "refused").tolist()
    found = find_refusal_heads(model, chats, labels, contrasts=["cot_divergence"])
    row = found.table[(found.table["layer"] == LENGTH_HEAD[0]) & (found.table["head"] == LENGTH_HEAD[1])].iloc[0]
    assert row["mass_q"] < 0.01  # by mass alone it would be one
    assert LENGTH_HEAD not in found.candidates()


@pytest.fixture(scope="module")
def neuron_rows():
    return {(row.analyzer, row.family): row for row in neurons(1)}


def test_neurons_are_found_among_decoys_and_nothing_where_there_is_nothing(neuron_rows):
    found = neuron_rows[("find_safety_neurons", "decoys in each group")]
    assert found.found == found.k == len(planted_neurons(1).neurons)  # ranked before everything else
    assert (
        found.false <= 14 - 6 - 2
    )  # each list holds 14; what rises by accident fills what planted ones and decoys leave
    assert neuron_rows[("find_safety_neurons", "pairs that differ in nothing")].false <= 2


def test_ras_tells_the_shifted_set_from_random_ones(neuron_rows):
    row = neuron_rows[("ras, p < 0.05", "shifted")]
    assert (row.found, row.k) == (1, 1)
    assert row.false <= 1


def test_the_table_adds_up_over_seeds():
    rows = [vars(Recovery("sweep", "plain", found, 2, false, 32)) for found, false in ((2, 1), (1, 0))]
    assert recovery_table(rows).splitlines()[-1] == "| sweep | plain | 2 | 3/4 (75 %) | 1/64 (1.6 %) |"
