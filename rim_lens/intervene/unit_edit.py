"""The one change of chosen units: x ← factor · x + v at some positions, for heads, neurons and neurons of experts.

zero: factor 0; scale: another factor; mean: factor 0, v the same for all rows; resample: factor 0, v another prompt's.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions
from rim_lens.engine.edit import Edit
from rim_lens.errors import RimLensError
from rim_lens.intervene.recording import donor_rows
from rim_lens.intervene.selection import Chosen, Entry, UnitTap
from rim_lens.model.taps import ExpertCall, Pass


class UnitEdit(UnitTap):
    """Changes chosen units of one kind; a neuron of an expert is changed at the tokens that are sent to its expert.

    `reference` holds what is put in place: one entry for all rows, or with `requests` one per prompt, of which each row
    gets another prompt's.
    """

    def __init__(
        self,
        change: str,
        kind: Literal["heads", "neurons"],
        chosen: Chosen,
        where: Positions,
        *,
        factor: float = 0.0,
        reference: Float[Tensor, "#prompt layer *unit"] | None = None,
        requests: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(chosen, where)
        of_experts = any(isinstance(entry, tuple) for entry in chosen)
        self.what, self.kind, self.factor = f"{change} of {kind}", kind, factor
        self.site = "on_expert" if of_experts else ("on_head_output" if kind == "heads" else "on_neurons")
        self.reference, self.values, self.requests, self.seed = reference, reference, requests, seed

    def wants(self, site: str, layer: int) -> bool:
        """Its own site, in the layers with a chosen unit."""
        return site == self.site and self.layers is not None and layer in self.layers

    def on_pass(self, here: Pass) -> None:
        """Choose each row's donor."""
        super().on_pass(here)
        if self.requests and self.reference is not None:
            requests = [chat.request for chat in here.known_batch(self.what).chats]
            self.values = self.reference[donor_rows(self.requests, requests, self.seed)]

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> Tensor | None:
        """See the class."""
        return None if self.idle else self.changed(z, self.mask(layer)[..., None], layer, (slice(None), None))

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> Tensor | None:
        """See the class."""
        return None if self.idle else self.changed(post, self.mask(layer), layer, (slice(None), None))

    def on_expert(self, call: ExpertCall, post: Float[Tensor, "slot d_mlp"]) -> Tensor | None:
        """See the class."""
        entry = call.layer, call.expert
        if self.idle or entry not in self.chosen:
            return None
        units = self.units(entry).to(post.device)
        mask = units[call.row] if len(units) > 1 else units
        if self.at is not None:
            mask = mask & self.at.flatten()[call.token][:, None]
        many = self.values is not None and len(self.values) > 1
        return self.changed(post, mask, entry, call.row if many else slice(None))

    def changed(self, values: Tensor, mask: Bool[Tensor, "..."], entry: Entry, rows: Any) -> Tensor:
        """The values after the change; `rows` lays what is put in place along their first axes."""
        if self.values is not None:
            place = entry if isinstance(entry, tuple) else (entry,)
            return torch.where(mask, self.values[(slice(None), *place)].to(values)[rows], values)
        return torch.where(mask, values * self.factor, values) if self.factor else values.masked_fill(mask, 0)

    def edit_key(self, row: int, chat: Chat) -> tuple[Any, ...]:
        """Equal for rows whose `as_edit` is equal."""
        masks = ((entry, mask[row if len(mask) > 1 else 0]) for entry, mask in self.chosen.items())
        named = tuple((entry, mine.cpu().numpy().tobytes()) for entry, mine in masks)
        return (chat.request, *named) if self.requests else named

    def as_edit(self, row: int, chat: Chat) -> Edit:
        """The change of one row, for an engine that writes many answers at once.

        Raises:
            RimLensError: neurons of experts.
        """
        donor = donor_rows(self.requests, [chat.request], self.seed)[0] if self.requests else 0
        factor, shift = {}, {}
        for entry, mask in self.chosen.items():
            if isinstance(entry, tuple):
                raise RimLensError(
                    f"{self.what} of experts cannot be made while vLLM writes: load the model with load_model(name)."
                )
            mine = mask[row if len(mask) > 1 else 0].cpu()
            if not bool(mine.any()):
                continue
            factor[entry] = torch.where(mine, self.factor, 1.0)
            if self.reference is not None:
                added = self.reference[donor, entry].cpu().float().view(len(mine), -1)
                shift[entry] = (added * mine[:, None]).contiguous()
        return Edit(self.kind, factor, shift)
