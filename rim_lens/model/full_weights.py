"""A whole model in safetensors files as a checkpoint: checked by config and names, read one parameter at a time.

Where transformers stores a family's weights in another layout than it computes with, the checkpoint is loaded whole
while it is shown.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.errors import RimLensError
from rim_lens.model.config_fields import differing_fields
from rim_lens.model.hub import translated_hub_errors
from rim_lens.model.stored_weights import StoredWeights, opened, other_names, stored_names
from rim_lens.model.whole_weights import check_extra, check_loaded

ONE_FILE, INDEX = (
    "model.safetensors",
    "model.safetensors.index.json",
)  # in the order in which transformers looks for them


class FullWeights(StoredWeights):
    """A whole model in safetensors files, read one parameter at a time.

    Raises:
        RimLensError: another config than the model's, weights that are missing, of another shape or without a place, or
            damaged files.

    """

    def __init__(self, hf: Any, folder: Path) -> None:
        super().__init__(hf, folder)
        self.check_config()
        self.expected = stored_names(hf)
        self.by_name = set(self.expected) <= set(self.files)
        if self.by_name:
            self.check_files()
        else:
            self.whole  # noqa: B018 - says what is missing
            self.release()

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of every key: of the one file or the index, as transformers chooses."""
        if (self.folder / ONE_FILE).is_file():
            with opened(self.folder / ONE_FILE) as file:
                return dict.fromkeys(file.keys(), self.folder / ONE_FILE)
        try:
            index = json.loads((self.folder / INDEX).read_text())["weight_map"]
        except FileNotFoundError as error:
            raise RimLensError(
                f"The checkpoint {self.folder} has no safetensors files ({ONE_FILE} or {INDEX}); save it in that "
                "format."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RimLensError(f"The index {self.folder / INDEX} cannot be read ({error}); copy it again.") from error
        found: dict[str, Path] = {}
        for name in sorted(set(index.values())):
            if not (self.folder / name).is_file():
                raise RimLensError(f"The checkpoint {self.folder} lacks {name}, which its index names; copy it again.")
            with opened(self.folder / name) as file:
                found |= dict.fromkeys(file.keys(), self.folder / name)
        return found

    @property
    def names(self) -> list[str]:
        """All parameters and stored buffers of the model."""
        return list(self.expected)

    @cached_property
    def whole(self) -> dict[str, Tensor]:
        """The parameters after transformers' conversion, where the files use another layout than the model."""
        with translated_hub_errors(str(self.folder)):
            loaded, info = type(self.hf).from_pretrained(
                self.folder,
                dtype=next(self.hf.parameters()).dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        check_loaded(loaded, info, f"the checkpoint {self.folder}")
        found = dict(loaded.state_dict())
        shapes = {name: tuple(found[name].shape) if name in found else None for name in self.expected}
        odd = next((name for name, value in self.expected.items() if shapes[name] != tuple(value.shape)), None)
        if odd is not None or set(stored_names(loaded)) - set(self.expected):
            odd = odd or min(set(stored_names(loaded)) - set(self.expected))
            raise RimLensError(
                f"The checkpoint {self.folder} does not fit the model: {odd} is not the same part in both."
            )
        return found

    def value(self, name: str, base: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The stored parameter; the base value plays no part."""
        if not self.by_name:
            return self.whole[name].to(base.device, base.dtype)
        with opened(self.files[name]) as file:
            return file.get_tensor(name).to(base.device, base.dtype)

    @property
    def label(self) -> str:
        """Nothing of the base's weights is left."""
        return f"(weights of {self.title})"

    def release(self) -> None:
        """Drop the whole checkpoint."""
        self.__dict__.pop("whole", None)

    def check_config(self) -> None:
        """Compare the checkpoint's config with the model's.

        Raises:
            RimLensError: another architecture, a field that changes the computation and differs, or no readable config.

        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.folder)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, ImportError) as error:
            raise RimLensError(
                f"The checkpoint {self.folder} has no config of a {type(self.hf).__name__}: {error}"
            ) from error
        mine, theirs = self.hf.config.to_dict(), config.to_dict()
        differing = differing_fields(mine, theirs)
        if differing:
            name, (here, there) = next(iter(differing.items()))
            others = f" (and {', '.join(list(differing)[1:4])})" if len(differing) > 1 else ""
            raise RimLensError(
                f"The checkpoint {self.folder} does not fit the model: its config has {name} = {there} where the "
                f"model has {here}{others}, so it would be computed otherwise than by itself; measure it with a base "
                "of its own config."
            )

    def check_files(self) -> None:
        """Compare shapes of the stored weights with the model's, and the tied ones with what they are tied to."""
        tied = other_names(self.hf)
        for key, path in self.files.items():
            first = tied.get(key, key)
            if first not in self.expected:
                continue
            with opened(path) as file:
                shape = tuple(file.get_slice(key).get_shape())
            if shape != tuple(self.expected[first].shape):
                raise RimLensError(
                    f"The checkpoint {self.folder} does not fit the model: {key} is {shape} there and "
                    f"{tuple(self.expected[first].shape)} here."
                )
            if key in tied and not torch.equal(self.tensor(key), self.tensor(first)):
                raise RimLensError(
                    f"The checkpoint {self.folder} holds {key} apart from {first}; they are one weight in the model."
                )
        extra = [key for key in self.files if key not in self.expected and key not in tied and not self.ignored(key)]
        check_extra(self.hf, extra, f"the checkpoint {self.folder}")

    def ignored(self, key: str) -> bool:
        """Whether transformers leaves a stored tensor out by this architecture's rule, or the model computes it."""
        patterns = getattr(self.hf, "_keys_to_ignore_on_load_unexpected", None) or ()
        return key in dict(self.hf.named_buffers()) or any(re.search(pattern, key) for pattern in patterns)

    def tensor(self, key: str) -> Tensor:
        """One stored tensor."""
        with opened(self.files[key]) as file:
            return file.get_tensor(key)
