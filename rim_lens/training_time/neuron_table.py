"""What the leading neurons of a set do: which tokens they promote, which prompts fire them, and how strongly they fire.

promoted, suppressed   tokens with the largest and smallest direct effect on their logits, see `direct_effect`
firing                 the prompts with the largest |a| at any of the measured positions, where, and a there
off, on                mean a at the decision position with thinking off and on, and the paired difference's bootstrap
interval

A neuron promotes its tokens where a > 0 and suppresses them where a < 0: in gated MLPs both signs are common.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from rim_lens.capture.neuron_activations import NeuronActivations
from rim_lens.capture.neuron_sets import NeuronRows, neuron_names, neuron_rows
from rim_lens.capture.neuron_values import NeuronValues, record_neurons
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, places, words_of
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import answered_chats, as_chats
from rim_lens.model.fitting import over_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_mean
from rim_lens.training_time.direct_effect import direct_effects
from rim_lens.training_time.prompt_pass import pass_over
from rim_lens.training_time.series_measures import REQUEST_AND_ANSWER
from rim_lens.units import columns_of

N_NEURONS, N_TOKENS, N_PROMPTS = 20, 8, 3


@dataclass(frozen=True, eq=False)
class NeuronTable(Result):
    """The leading neurons of a set, one row each.

    `table`: the neuron, its promoted and suppressed tokens, mean activation at the decision position with thinking
    `off` and, where chats with thinking on were given, `on` and their paired `change` with its 95 % interval. `tokens`:
    one row per neuron, side and rank with the token and its direct effect on the logit (nats per unit of activation,
    before the final norm divides by the length of the stream). `firing`: one row per neuron and rank with the request,
    segment, token and a.
    """

    figure: ClassVar = "neurons:neuron_means"

    table: pd.DataFrame
    tokens: pd.DataFrame
    firing: pd.DataFrame
    positions: str
    n_set: int
    n_off: int
    n_on: int

    def __repr__(self) -> str:
        return f"NeuronTable({len(self.table)} of {self.n_set} neurons, {self.n_off} prompts off, {self.n_on} on)"

    def caption(self) -> str:
        """What was read, and how."""
        on = f" and {self.n_on} with thinking on" if self.n_on else ""
        return (
            f"The first {len(self.table)} of {self.n_set} neurons on {self.n_off} prompts with thinking off{on}; "
            "tokens by the direct path through final norm and unembedding alone"
        )


def neuron_table(
    model: LensModel,
    neurons: NeuronRows,
    prompts: Prompts,
    *,
    on: Sequence[Chat] | None = None,
    n_neurons: int = N_NEURONS,
    n_tokens: int = N_TOKENS,
    n_prompts: int = N_PROMPTS,
    positions: Positions = REQUEST_AND_ANSWER,
    batch_size: int = 16,
    seed: int = 0,
) -> NeuronTable:
    """Read the leading neurons of a set.

    Args:
        model: the model.
        neurons: `SafetyNeurons`, whose first rows are the leading ones, or rows (layer, unit) or (layer, expert, unit).
        prompts: requests or prompts (rendered with thinking off), or chats.
        on: the same requests with thinking on, each up to its decision position (`generate` gives such chats).
        n_neurons: how many neurons.
        n_tokens: promoted and suppressed tokens of each.
        n_prompts: firing prompts of each.
        positions: where a prompt may fire a neuron.
        batch_size: chats per pass.
        seed: of the bootstrap.

    Raises:
        RimLensError: chats of other requests in `on`, or a model without the modules of the direct path.
    """
    every = neuron_rows(neurons)
    rows = every[:n_neurons]
    off = as_chats(model, prompts)
    on = None if on is None else answered_chats(on, "on")
    if on is not None and [chat.request for chat in on] != [chat.request for chat in off]:
        raise RimLensError("The chats with thinking on must be of the same requests in the same order as the prompts.")
    effects = direct_effects(model, rows)  # first: a model without the modules is refused before any pass
    every_chat = [*off, *(on or [])]
    with record_neurons(model, rows) as values, torch.no_grad():
        run = model.decision_logits
        for _ in over_batches(model, every_chat, batch_size, lambda _, batch: run(batch), "neuron_table", split=False):
            pass
    return table_of(model, every, rows, effects, values, off, list(on or []), n_tokens, n_prompts, positions, seed)


def read_table(
    model: LensModel,
    neurons: NeuronRows,
    off: Sequence[Chat],
    on: Sequence[Chat],
    *,
    n_neurons: int = N_NEURONS,
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[NeuronTable, NeuronActivations, NeuronActivations]:
    """The table, and from the same passes all neurons at the decision position with thinking off and on.

    Chats are those of `neuron_table`; the activations have values per prompt of the set.
    """
    every = neuron_rows(neurons)
    rows = every[:n_neurons]
    effects = direct_effects(model, rows)
    with record_neurons(model, rows) as values:
        sides = [
            pass_over(model, chats, "decision", per_prompt=every, batch_size=batch_size).neurons for chats in (off, on)
        ]
    table = table_of(
        model, every, rows, effects, values, list(off), list(on), N_TOKENS, N_PROMPTS, REQUEST_AND_ANSWER, seed
    )
    return table, sides[0], sides[1]


def table_of(
    model: LensModel,
    every: Int[np.ndarray, "neuron index"],
    rows: Int[np.ndarray, "neuron index"],
    effects: Float[torch.Tensor, "neuron vocab"],
    values: NeuronValues,
    off: list[Chat],
    on: list[Chat],
    n_tokens: int,
    n_prompts: int,
    positions: Positions,
    seed: int,
) -> NeuronTable:
    """The table from recorded activations, whatever passes recorded them."""
    names = neuron_names(rows)
    tokens = pd.DataFrame(
        [
            row
            for name, effect in zip(names, effects, strict=True)
            for row in named_tokens(model, name, effect, n_tokens)
        ]
    )
    firing = pd.DataFrame(
        [
            row
            for i, name in enumerate(names)
            for row in firing_prompts(model, name, i, values, off + on, positions, n_prompts)
        ]
    )
    index = columns_of(rows)
    sides = tokens.groupby(["neuron", "side"], sort=False)["token"].agg(" ".join)
    table = pd.DataFrame({"neuron": names, **index})
    for side in ("promoted", "suppressed"):
        table[side] = [sides[name, side] for name in names]
    before = at_decision(values, off)
    table["off"] = before.mean(axis=0)
    if on:
        after = at_decision(values, on)
        table["on"] = after.mean(axis=0)
        table["change"] = (after - before).mean(axis=0)
        ends = [bootstrap_mean(column, seed=seed) for column in (after - before).T]
        table["change_low"], table["change_high"] = [end.low for end in ends], [end.high for end in ends]
    return NeuronTable(
        table=table,
        tokens=tokens,
        firing=firing,
        positions=words_of(positions),
        n_set=len(every),
        n_off=len(off),
        n_on=len(on),
        manifest=Manifest.collect(model, seed=seed),
    )


def at_decision(values: NeuronValues, chats: Sequence[Chat]) -> Float[np.ndarray, "prompt neuron"]:
    """Every neuron's activation at each chat's decision position."""
    return np.stack([values.of(chat)[chat.decision_position] for chat in chats]).astype(np.float64)


def named_tokens(model: LensModel, name: str, effect: Float[torch.Tensor, " vocab"], n: int) -> list[dict[str, Any]]:
    """The tokens with the largest and the smallest direct effect."""
    tokens = []
    for side, sign in (("promoted", 1), ("suppressed", -1)):
        values, ids = (sign * effect).topk(n)
        for rank, (value, token) in enumerate(zip(values.tolist(), ids.tolist(), strict=True), start=1):
            text = repr(model.chat_format.decode([token]))
            tokens.append(
                {"neuron": name, "side": side, "rank": rank, "token": text, "token_id": token, "effect": sign * value}
            )
    return tokens


def firing_prompts(
    model: LensModel,
    name: str,
    column: int,
    neuron_values: NeuronValues,
    chats: Sequence[Chat],
    positions: Positions,
    n: int,
) -> list[dict[str, Any]]:
    """The chats in which the neuron is largest at one of the positions, each with the token where it is."""
    peaks = []
    for chat in chats:
        values = neuron_values.of(chat)[:, column]
        inside = np.flatnonzero(places(chat, positions) & np.isfinite(values))
        if len(inside):
            token = int(inside[np.abs(values[inside]).argmax()])
            peaks.append((float(values[token]), token, chat))
    peaks.sort(key=lambda peak: -abs(peak[0]))
    return [
        {
            "neuron": name,
            "rank": rank,
            "activation": value,
            "request": chat.request,
            "thinking": chat.thinking,
            "segment": SEGMENTS[int(chat.segment_ids[token])],
            "position": token - chat.decision_position,
            "token": repr(model.chat_format.decode([int(chat.token_ids[token])])),
        }
        for rank, (value, token, chat) in enumerate(peaks[:n], start=1)
    ]
