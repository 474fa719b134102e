"""Receiver heads against a loop over tokens, and on heads whose looks are planted."""

import numpy as np
import pytest
from families import shared_model
from planted import COT_HEAD, LENGTH_HEAD, REFUSAL_HEAD, planted_model
from scipy import stats

from rim_lens import RimLensError, attention_rows, receiver_heads
from rim_lens.inference_time.cot_sentences import cot_sentences
from rim_lens.inference_time.receiver_heads import ReceiverHeads

COTS = ["One. Two is it. Three then. Four of them. Five. Six too. Seven.", "Ah. Be. Ce. De it is. Eh no. Ef. Ge."]
GAP = 2


def chats_of(model):
    return [model.render([cot[:4]], thinking="prefilled", cot=cot)[0] for cot in COTS]


def loop(model):
    """Kurtosis per CoT and head, with and without the control for distance, entry by entry."""
    tables = []
    for chat in chats_of(model):
        sentences = cot_sentences(model, chat)
        (rows,) = attention_rows(model, [chat], "cot")
        first, n = sentences[0].start, len(sentences)
        table = {}
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                for q in range(GAP, n):
                    row = []
                    for k in range(q - GAP + 1):
                        block = rows[layer, head][sentences[q].start - first : sentences[q].stop - first]
                        row.append(float(block[:, sentences[k].start : sentences[k].stop].mean()))
                    for k, value in enumerate(row):
                        table[layer, head, q, k] = value / np.mean(row)
        tables.append((table, n))
    found = []
    for table, n in tables:
        for controlled in (True, False):
            kurtoses = np.zeros((model.n_layers, model.n_heads))
            for layer, head in np.ndindex(kurtoses.shape):

                def value(q, k, layer=layer, head=head, table=table, controlled=controlled):
                    same = [
                        v for t, _ in tables for (a, b, c, d), v in t.items() if (a, b, c - d) == (layer, head, q - k)
                    ]
                    return table[layer, head, q, k] / (np.mean(same) if controlled else 1)

                received = [np.mean([value(q, k) for q in range(k + GAP, n)]) for k in range(n - GAP)]
                kurtoses[layer, head] = stats.kurtosis(received)
            found.append(kurtoses)
    return np.mean(found[::2], axis=0), np.mean(found[1::2], axis=0)


def test_kurtosis_equals_a_loop_over_sentences():
    model = shared_model("llama")
    found, (controlled, raw) = receiver_heads(model, chats_of(model), n_permutations=5), loop(model)
    for row in found.table.itertuples():
        assert row.kurtosis == pytest.approx(controlled[row.layer, row.head], rel=1e-4)
        assert row.kurtosis_uncontrolled == pytest.approx(raw[row.layer, row.head], rel=1e-4)
    assert found.n_sentences == 14


def test_the_planted_head_that_looks_at_one_sentence_from_everywhere_is_found():
    model, truth = planted_model(0, n_prompts=8)
    careful = ["okay weigh.", "risk check.", "law harm.", "hurt think.", "ask weigh.", "risk law.", "harm ask."]
    places = [1, 2, 3, 4, 1, 2, 3, 4]
    cots = [" ".join([*careful[:at], "quick easy.", *careful[at:]]) for at in places]
    chats = [
        model.render([one], thinking="prefilled", cot=cot)[0] for one, cot in zip(truth.harmful, cots, strict=True)
    ]
    found = receiver_heads(model, chats, n_permutations=200)
    table = found.table.set_index(["layer", "head"])
    assert set(found.ranked(2)) == {COT_HEAD, REFUSAL_HEAD}  # lazy words are soft ones to the refusal head
    assert table.loc[COT_HEAD, "p"] < 0.05
    assert table.loc[LENGTH_HEAD, "p"] > 0.05


def test_what_is_too_short_is_refused_or_left_out(tmp_path):
    model = shared_model("llama")
    short = model.render(["Hi"], thinking="prefilled", cot="One. Two.")
    with pytest.raises(RimLensError, match="No CoT has 6 sentences"):
        receiver_heads(model, short)
    with pytest.raises(RimLensError, match="at least 1"):
        receiver_heads(model, short, gap=0)
    found = receiver_heads(model, [*chats_of(model), *short], n_permutations=5)
    assert found.left_out == 1
    assert ReceiverHeads.load(found.save(tmp_path / "receivers")).caption() == found.caption()
    z = found.plot().data[0].z
    assert all(z[row.head, row.layer] == row.kurtosis for row in found.table.itertuples())
