"""The planted models of the tests, for the published figures too."""

import sys
from pathlib import Path


def use_tests() -> None:
    """Let the tests' own modules be imported: planted models are made in one place."""
    folder = str(Path(__file__).resolve().parents[2] / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
