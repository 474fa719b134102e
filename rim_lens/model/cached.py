"""Which models are on this machine already: in the package's cache and in the hub's."""

import json
from dataclasses import dataclass
from pathlib import Path

from rim_lens.cache import cache_folder
from rim_lens.model.names import NAME


@dataclass(frozen=True)
class CachedModel:
    """A model in a cache: what to load it by, where it came from, and its size in bytes."""

    name: str
    kind: str
    size: int


def cached_models() -> list[CachedModel]:
    """The small model if it was fetched, converted GGUF files by their folder, models of the hub by their id."""
    folder = cache_folder()
    found = [CachedModel(NAME, "fetched through the package index", size_of(folder / NAME))]
    for config in sorted((folder / "gguf").glob("*/config.json")):
        family = json.loads(config.read_text(encoding="utf-8")).get("model_type", "unknown")
        found.append(CachedModel(str(config.parent), f"{family}, converted from a .gguf file", size_of(config.parent)))
    return [one for one in found if one.size] + hub_models()


def hub_models() -> list[CachedModel]:
    """Models in the hub's cache of which weights are there."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        CachedModel(one.repo_id, "from the hub", one.size_on_disk)
        for one in sorted(repositories, key=lambda one: one.repo_id)
        if one.repo_type == "model"
        and any(file.file_name.endswith((".safetensors", ".bin")) for kept in one.revisions for file in kept.files)
    ]


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
