"""What every client of an HTTP server needs: the key from the environment, what to try again, and when."""

import os
from typing import Any

from rim_lens.errors import RimLensError

KEY_VARIABLE = "RIM_LENS_API_KEY"
RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


def key_headers(key_env: str | None, role: str) -> dict[str, str]:
    """The key from the environment; only a variable that was asked for by name has to be there."""
    key = os.environ.get(key_env or KEY_VARIABLE)
    if key_env and not key:
        raise RimLensError(
            f"The {role}'s key should stand in the environment variable {key_env}, which is empty; set it."
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def seconds_of(header: str | None, otherwise: float) -> float:
    """What a Retry-After header asks to wait, in seconds."""
    try:
        return max(0.0, float(header)) if header else otherwise
    except ValueError:
        return otherwise  # it may also be a date


def import_httpx(role: str) -> Any:
    """The HTTP client, which is an extra."""
    try:
        import httpx
    except ImportError as error:
        raise RimLensError(
            f"A {role} behind an endpoint needs httpx; install it with: pip install 'rim-lens[judge]'."
        ) from error
    return httpx
