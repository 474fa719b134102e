"""The user's own copies of public prompt sets, so that a set fetched once loads without a network.

A copy is a JSON Lines file named after the set and the place it came from. Its first line holds the set's licence and
content hash, each further line one prompt. A copy whose hash no longer fits is fetched again.
"""

import hashlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path

from rim_lens.atomic import write_whole
from rim_lens.cache import cache_folder
from rim_lens.data.schemas import Prompt, PromptSet

FORMAT = 2  # copies of the first format had no rationales


def folder() -> Path:
    """Where the copies are: `prompts` in the cache."""
    return cache_folder() / "prompts"


def kept(name: str, source: str) -> PromptSet | None:
    """The copy of this set from this source, or `None` when there is no intact one."""
    try:
        head, *lines = _file(name, source).read_text(encoding="utf-8").splitlines()
        facts = json.loads(head)
        prompts = tuple(Prompt(**json.loads(line)) for line in lines)
        copy = PromptSet(name, source, prompts, facts["licence"])
        return copy if copy.sha256 == facts["sha256"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(prompts: PromptSet) -> None:
    """Write a copy, whole or not at all; a folder that cannot be written is reported with a warning."""
    target = _file(prompts.name, prompts.source)
    head = {"licence": prompts.licence, "sha256": prompts.sha256}
    lines = [json.dumps(row) for row in (head, *map(asdict, prompts))]
    try:
        write_whole(target, "\n".join(lines) + "\n")
    except OSError as error:
        warnings.warn(f"No copy of the prompt set {prompts.name} could be kept: {error}.", stacklevel=2)


def _file(name: str, source: str) -> Path:
    place = hashlib.sha256(f"{FORMAT}:{source}".encode()).hexdigest()[:12]
    return folder() / f"{name}-{place}.jsonl"
