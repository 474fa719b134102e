"""Files of an audit, each of which appears whole or not at all."""

import json
from pathlib import Path
from typing import Any

from rim_lens.atomic import write_whole
from rim_lens.errors import RimLensError


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        RimLensError: the folder cannot be written or the disk is full.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise RimLensError(
            f"{path} could not be written ({error.strerror or error}); free some space or choose another folder."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
