"""Checkpoints: several states of one model's weights, in a fixed order, one in memory at a time.

    series = Checkpoints.from_folder("assets/organism")
    model = series.open()
    for checkpoint, model in series.loaded(model):
        ...

Weights are swapped in place (`rim_lens.model.swap`); while one checkpoint is measured the next one is downloaded or
read from disk in a thread. All of them are compared with the model (shapes, vocabulary, checksums) before the first is
loaded.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

from rim_lens.errors import RimLensError
from rim_lens.model.adapter import WEIGHTS, adapter_base, adapter_revision, has_tokenizer, is_adapter
from rim_lens.model.adapter_weights import adapter_weights
from rim_lens.model.full_weights import FullWeights
from rim_lens.model.hub import check_reachable, translated_hub_errors
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model
from rim_lens.model.stored_weights import StoredWeights
from rim_lens.model.swap import shown, swap_of
from rim_lens.training_time.series import Checkpoint, Series, read_series

BASE = "base"
TEXT = "A  text\n\nwith 1234 parts, can't: <think> Ünï 你好 it </think>\n"  # cut by both tokenizers
FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]  # what a checkpoint on the hub needs here


class Checkpoints(Sequence[Checkpoint]):
    """Names to weights, in order, with the reference that shifts are measured against.

    Args:
        sources: hub ids, "id@revision", local folders, adapter folders or `Checkpoint`s; a mapping gives them names.
        base: what the adapters are added to, as for `load_model`; found in the adapters where not given.
        reference: name of the checkpoint that the others are compared with. None: the one named "base"; where there is
            none, the model without any update comes first under that name.

    Raises:
        RimLensError: two checkpoints of one name, or a reference that is none of them.

    """

    def __init__(
        self,
        sources: Sequence[str | Path | Checkpoint] | Mapping[str, str | Path],
        *,
        base: str | None = None,
        reference: str | None = None,
    ) -> None:
        pairs = sources.items() if isinstance(sources, Mapping) else [(None, source) for source in sources]
        items = [as_checkpoint(name, source) for name, source in pairs]
        if reference is None and all(item.name != BASE for item in items):
            items = [Checkpoint(BASE, None), *items]
        reference = reference or BASE
        names = [item.name for item in items]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RimLensError(f"Two checkpoints are named {twice!r}; give them as a mapping from names of your own.")
        if reference not in names:
            raise RimLensError(f"The reference {reference!r} is none of the checkpoints {', '.join(names)}.")
        self.items, self._base = tuple(items), base
        self.reference: Checkpoint = self[reference]
        self._weights: dict[tuple[int, str], StoredWeights] = {}

    @classmethod
    def from_folder(cls, folder: str | Path, *, reference: str | None = None) -> "Checkpoints":
        """The series in a folder: as its series.json says, else all subfolders with adapters or models.

        A series file in the folder stands for the checkpoints that it names.
        """
        series: Series = read_series(folder)
        return cls(series.checkpoints, base=series.base, reference=reference or series.reference)

    def __repr__(self) -> str:
        return f"Checkpoints({', '.join(self.names)}; reference {self.reference.name})"

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, key: int | str) -> Checkpoint: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Checkpoint]: ...
    def __getitem__(self, key: int | str | slice) -> Checkpoint | Sequence[Checkpoint]:
        """A checkpoint by place or name."""
        if not isinstance(key, str):
            return self.items[key]
        for item in self.items:
            if item.name == key:
                return item
        raise RimLensError(f"There is no checkpoint {key!r}; there are {', '.join(self.names)}.")

    @property
    def names(self) -> list[str]:
        """Names in order."""
        return [item.name for item in self.items]

    def only(self, names: Sequence[str]) -> "Checkpoints":
        """The series with the named checkpoints alone, in this order; the reference must be among them."""
        return Checkpoints([self[name] for name in names], base=self._base, reference=self.reference.name)

    @property
    def base(self) -> str:
        """What the checkpoints' adapters are added to, as for `load_model`."""
        if self._base is not None:
            return self._base
        folders = [Path(item.source) for item in self.items if item.source is not None]
        bases = {adapter_base(folder) for folder in folders if is_adapter(folder)}
        if len(bases) == 1:
            return bases.pop()
        full = [item.source for item in self.items if item.source is not None]
        if not bases and full:
            return full[0]
        raise RimLensError("The checkpoints do not name one base model; pass base= to Checkpoints.")

    @property
    def revision(self) -> str | None:
        """The revision of the base that the adapters were trained on, where they name one."""
        folders = [Path(item.source) for item in self.items if item.source is not None]
        named = {adapter_revision(folder) for folder in folders if is_adapter(folder)} - {None}
        if len(named) > 1:
            raise RimLensError(
                f"The adapters were trained on different revisions of the base ({', '.join(sorted(map(str, named)))})."
            )
        return named.pop() if named else None

    def open(self, **options: Any) -> LensModel:
        """The base model, checked against every checkpoint; options as for `load_model`."""
        if options.get("revision") is None:
            options["revision"] = self.revision
        model = load_model(self.base, **options)
        self.check(model)
        return model

    # ---- one model, several weights -------------------------------------------------------------------------------
    def check(self, model: LensModel) -> None:
        """Compare every checkpoint with the model.

        Raises:
            RimLensError: a missing or changed file, another architecture or width, another vocabulary, adapters for a
                model that was loaded with one already.

        """
        for item in self.items:
            self.weights(model, item)

    def weights(self, model: LensModel, item: Checkpoint) -> StoredWeights | None:
        """A checkpoint's stored weights, checked against the model once; None for the base."""
        if item.source is None:
            return None
        key = (id(model.hf), item.name)
        if key not in self._weights:
            swap = swap_of(model)  # raises for models without a transformers tree
            folder = located(item)
            if model.merged_adapter is not None and is_adapter(folder):
                raise RimLensError(
                    f"{model.name} was loaded with the adapter {model.merged_adapter}, and those of the checkpoints "
                    "would be added on top of it; load the base alone with open(), and show a checkpoint with "
                    "load(model, name)."
                )
            check_sum(item, folder)
            compare_tokenizer(model, folder)
            compare_ends(model, folder)
            stored = (
                adapter_weights(model.hf, folder, swap.base) if is_adapter(folder) else FullWeights(model.hf, folder)
            )
            stored.title = item.name
            self._weights[key] = stored
        return self._weights[key]

    def load(self, model: LensModel, checkpoint: str | Checkpoint) -> LensModel:
        """Put one checkpoint's weights into the model, to stay; the same model is returned."""
        item = self[checkpoint] if isinstance(checkpoint, str) else checkpoint
        swap_of(model).put(self.weights(model, item))
        return model

    def distance(self, model: LensModel, checkpoint: str | Checkpoint | None = None) -> float:
        """‖θ − θ_ref‖ / ‖θ_ref‖ of the weights in the model now, against a checkpoint (default: the reference)."""
        item = self[checkpoint] if isinstance(checkpoint, str) else checkpoint or self.reference
        return swap_of(model).distance(self.weights(model, item))

    def loaded(self, model: LensModel) -> Iterator[tuple[Checkpoint, LensModel]]:
        """Each checkpoint in order, loaded into the model; afterwards the model has the weights it had before.

        That holds too when the loop is left early or raises.
        """
        self.check(model)
        before, swap = shown(model), swap_of(model)
        stored = [self.weights(model, item) for item in self.items]
        with ThreadPoolExecutor(max_workers=1) as reader:
            try:
                following: Future[None] | None = None
                for number, item in enumerate(self.items):
                    if following is not None:
                        following.result()
                    swap.put(stored[number])
                    after = stored[number + 1] if number + 1 < len(stored) else None
                    following = reader.submit(after.prefetch) if after is not None else None
                    yield item, model
            finally:
                swap.put(before)


def as_checkpoint(name: str | None, source: str | Path | Checkpoint) -> Checkpoint:
    """A checkpoint from a path or hub id; named after its last part where no name is given."""
    if isinstance(source, Checkpoint):
        return source
    text = str(source)
    path, revision = text, None
    if not Path(text).expanduser().exists() and "@" in text:
        path, _, revision = text.rpartition("@")
    last = Path(path).name + (f"@{revision}" if revision else "")
    return Checkpoint(name or last, path, revision=revision)


def located(item: Checkpoint) -> Path:
    """The checkpoint's folder, downloaded first where it is on the hub."""
    source = str(item.source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise RimLensError(f"The checkpoint {item.name} has no folder {source}; check the path.")
    from huggingface_hub import snapshot_download

    check_reachable(source, item.revision)
    with translated_hub_errors(source):
        return Path(snapshot_download(source, revision=item.revision, allow_patterns=FILES))


def check_sum(item: Checkpoint, folder: Path) -> None:
    """Raise where the checkpoint's file is not the recorded one."""
    if item.sha256 is None:
        return
    path = folder / (WEIGHTS if is_adapter(folder) else "model.safetensors")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RimLensError(f"The checkpoint {item.name} has no readable {path.name} ({error.strerror}).") from error
    if digest != item.sha256:
        raise RimLensError(f"{path} was changed or damaged: its sha256 is not the one recorded for {item.name}.")


def compare_tokenizer(model: LensModel, folder: Path) -> None:
    """Compare the checkpoint's tokenizer and chat template, where it brings them, with the model's.

    Raises:
        RimLensError: another vocabulary, or another way to cut a text into its tokens.

    """
    if not has_tokenizer(folder):
        return
    from transformers import AutoTokenizer

    with translated_hub_errors(str(folder)):
        theirs = AutoTokenizer.from_pretrained(folder)
    mine = model.tokenizer
    differing = dict(theirs.get_vocab().items() ^ mine.get_vocab().items())
    if not differing and theirs.encode(TEXT, add_special_tokens=False) != mine.encode(TEXT, add_special_tokens=False):
        differing = {"how a text is cut": None}
    if differing:
        raise RimLensError(
            f"The checkpoint {folder} has another tokenizer than {model.name} (they differ at "
            f"{next(iter(differing))!r}); neurons and refusal tokens would not be comparable."
        )
    if theirs.chat_template is not None and theirs.chat_template != mine.chat_template:
        warnings.warn(
            f"The checkpoint {folder} has another chat template than {model.source_name}; it is measured with the "
            "latter's, as all of the series are. Pass chat_template= to open() for another.",
            stacklevel=2,
        )


def compare_ends(model: LensModel, folder: Path) -> None:
    """Warn where the checkpoint's own settings end an answer at other tokens than the model's."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        theirs = token_set(json.loads(path.read_text()).get("eos_token_id"))
    except (OSError, ValueError, AttributeError) as error:
        raise RimLensError(f"The settings {path} cannot be read ({error}); copy them again.") from error
    if theirs - set(model.chat_format.eos_ids):
        warnings.warn(
            f"The checkpoint {folder} ends answers at the tokens {sorted(theirs)}, the series at "
            f"{sorted(model.chat_format.eos_ids)}; answers of all checkpoints end where the series' base ends them.",
            stacklevel=2,
        )


def token_set(ids: int | list[int] | None) -> set[int]:
    """Token ids from a config, where one stands for itself."""
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
