"""Adapters as changes of single parameters.

Plain LoRA changes W to W + scale · B A, with scale = alpha / r (alpha / √r with rank-stabilised scaling; alpha and r
may differ between modules); nothing larger than one parameter is held. An adapter of another kind is merged by PEFT
into a second copy of the model, which is held while the adapter is shown.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rim_lens.errors import RimLensError
from rim_lens.model.adapter import PREFIX, WEIGHTS, adapter_config, check_adapter, is_plain_lora, scale_of
from rim_lens.model.peft_merge import COPIES, merge_adapter, separate_copy
from rim_lens.model.stored_weights import StoredWeights, other_names, read_tensors, stored_names


def adapter_weights(hf: Any, folder: Path, base: Mapping[str, Tensor]) -> StoredWeights:
    """An adapter's weights, checked against the model; `base`: see `MergedAdapter`."""
    return LoraWeights(hf, folder) if reads_plainly(hf, folder) else MergedAdapter(hf, folder, base)


class LoraWeights(StoredWeights):
    """A plain LoRA adapter in PEFT's format; modules saved whole beside it are replaced.

    Raises:
        RimLensError: another base model, or damaged files.

    """

    def __init__(self, hf: Any, folder: Path) -> None:
        super().__init__(hf, folder)
        check_adapter(hf, folder)
        self.config = adapter_config(folder)
        self.tensors = read_tensors(folder / WEIGHTS)
        self.updates = dict(lora_updates(self.tensors))
        parameters = stored_names(hf)
        for name, keys in self.updates.items():
            if name not in parameters or (len(keys) == 1 and self.tensors[keys[0]].shape != parameters[name].shape):
                raise RimLensError(f"The adapter {folder} has {keys[0]}, which has no place in {type(hf).__name__}.")

    @property
    def names(self) -> list[str]:
        """Parameters that are changed."""
        return list(self.updates)

    def value(self, name: str, base: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """W + scale · B A, computed in float32."""
        keys = self.updates[name]
        if len(keys) == 1:
            return self.tensors[keys[0]].to(base.device, base.dtype)
        a, b = (self.tensors[key].to(base.device, torch.float32) for key in keys)
        scale = scale_of(self.config, name.removesuffix(".weight"))
        if self.config.get("fan_in_fan_out"):
            return torch.addmm(base.float(), a.T, b.T, alpha=scale).to(base.dtype)
        return torch.addmm(base.float(), b, a, alpha=scale).to(base.dtype)


def lora_updates(tensors: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each changed parameter with the keys of its two matrices, or the key of its replacement."""
    for key in tensors:
        module, lora, matrix = key.removeprefix(PREFIX).partition(".lora_")
        if matrix.startswith("B."):
            continue
        yield (f"{module}.weight", (key, key.replace(".lora_A.", ".lora_B."))) if lora else (module, (key,))


def reads_plainly(hf: Any, folder: Path) -> bool:
    """Whether an adapter is plain LoRA on linear layers none of whose weights is tied to another."""
    if not is_plain_lora(adapter_config(folder)):
        return False
    tensors = read_tensors(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else {}
    modules, tied = dict(hf.named_modules()), other_names(hf)
    shared = {*tied, *tied.values()}
    for key in tensors:
        name, lora, matrix = key.removeprefix(PREFIX).partition(".lora_")
        if lora and (matrix not in ("A.weight", "B.weight") or not isinstance(modules.get(name), nn.Linear | Conv1D)):
            return name not in modules  # another base model: LoraWeights says so
        if key.endswith(COPIES) or (f"{name}.weight" if lora else name) in shared:
            return False
    return True


class MergedAdapter(StoredWeights):
    """An adapter of any kind, merged by PEFT into a second copy of the base while it is shown.

    Args:
        hf: the model.
        folder: of the adapter.
        base: values of the parameters that the model does not show as its base has them.

    Raises:
        RimLensError: what `merge_adapter` raises, or an update of one of two tied weights.

    """

    def __init__(self, hf: Any, folder: Path, base: Mapping[str, Tensor]) -> None:
        super().__init__(hf, folder)
        self.base = base
        mine, merged = stored_names(hf), self.merged
        if set(merged) != set(mine) or any(merged[name].shape != mine[name].shape for name in mine):
            changed = sorted(set(merged) ^ set(mine)) or [n for n in mine if merged[n].shape != mine[n].shape]
            raise RimLensError(
                f"The adapter {folder} changes the embedding or the head alone, or their size ({changed[0]}), which "
                "are one weight in the base: load it by itself with load_model(adapter=), or merge it and give the "
                "merged folder."
            )
        self.changed = [
            name for name in mine if not torch.equal(merged[name], base.get(name, mine[name]).to(mine[name].device))
        ]
        self.release()

    @cached_property
    def merged(self) -> dict[str, Tensor]:
        """All parameters with the adapter merged."""
        return stored_names(merge_adapter(separate_copy(self.hf, self.base), self.folder))

    @property
    def names(self) -> list[str]:
        """Parameters that are changed."""
        return self.changed

    def value(self, name: str, base: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The merged parameter."""
        return self.merged[name].detach().to(base.device, base.dtype)

    def release(self) -> None:
        """Drop the second copy."""
        self.__dict__.pop("merged", None)
