"""Attention knock-out of single tokens: chosen heads of each row may not look at some columns, from some column on."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rim_lens.intervene.selection import Chosen, layers_of
from rim_lens.model.taps import AttentionCall, Tap


class HiddenTokens(Tap):
    """Hides columns of each row from chosen heads, for the queries from `first` on; later columns stay visible.

    Columns are those of the batch, padding included; a row of `hidden` may be shorter than what is decoded later.
    """

    def __init__(
        self,
        chosen: Chosen,
        hidden: Bool[Tensor, "row column"],
        first: Int[Tensor, " row"],
    ) -> None:
        self.layers = layers_of(chosen)
        self.chosen, self.hidden, self.first = chosen, hidden, first

    def on_keys(self, layer: int, call: AttentionCall) -> None:
        """See the class."""
        here = call.here
        keys = self.hidden[:, call.key_start : call.key_start + call.n_keys].to(here.device)
        keys = torch.nn.functional.pad(keys, (0, call.n_keys - keys.shape[1]))
        queries = here.columns()[None] >= self.first.to(here.device)[:, None]
        heads = self.chosen[layer].to(here.device)
        call.block(heads[:, :, None, None] & queries[:, None, :, None] & keys[:, None, None])
