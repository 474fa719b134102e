"""Figures as image files for papers: PNG, SVG, PDF, WebP or JPEG, drawn by a local Chromium through kaleido.

Nothing is fetched: plotly.js is the one inside the plotly package, MathJax is left out (figures use none), and the
browser is given a proxy that leads nowhere, so that it cannot reach a network::

    save_image(table.plot(), "figures/rates.pdf", width=700)
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from rim_lens.errors import RimLensError

FORMATS = ("png", "svg", "pdf", "webp", "jpg", "jpeg")
NOWHERE = "127.0.0.1:9"  # the discard port: requests end here
WIDTH = 800


def save_image(
    figure: go.Figure, path: str | Path, *, width: int = WIDTH, height: int | None = None, scale: float = 2.0
) -> Path:
    """Draw a figure into a file; its ending decides the format.

    Args:
        figure: any plotly figure.
        path: ends in .png, .svg, .pdf, .webp, .jpg or .jpeg; missing folders are made.
        width: in pixels of the page, as on screen.
        height: likewise; the figure's own by default.
        scale: pixels of the image per pixel of the page (PNG, WebP, JPEG); 2 is sharp in print.

    Returns:
        The path.

    Raises:
        RimLensError: another ending, the extra `images` is not installed, no browser is found, or it cannot draw.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise RimLensError(f"{path.name} does not say which format to write; end it in .{', .'.join(FORMATS)}.")
    (image,) = image_bytes([figure], kind, width=width, height=height, scale=scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return path


def image_bytes(
    figures: Sequence[go.Figure],
    kind: str = "png",
    *,
    width: int = WIDTH,
    height: int | None = None,
    scale: float = 2.0,
) -> list[bytes]:
    """Several figures as images in memory, drawn by one browser. Arguments and errors as for `save_image`."""
    try:
        import kaleido
        from choreographer.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError
    except ImportError as error:
        raise RimLensError(
            f"Images need the extra 'images' ({error.name} is missing): pip install 'rim-lens[images]'."
        ) from error

    async def draw() -> list[bytes]:
        async with kaleido.Kaleido(mathjax=False, proxy_server=NOWHERE) as browser:
            return [await browser.calc_fig(*_asked(figure, kind, width, height, scale)) for figure in figures]

    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread already runs an event loop
            return thread.submit(lambda: asyncio.run(draw())).result()
    except ChromeNotFoundError as error:
        raise RimLensError(
            "Images need a Chromium or Chrome, and none was found; install one (Debian: apt-get install chromium) "
            f"or set BROWSER_PATH to its program (now: {os.environ.get('BROWSER_PATH', 'not set')})."
        ) from error
    except (BrowserFailedError, BrowserClosedError) as error:
        raise RimLensError(f"The browser that draws images did not start or closed early: {error}") from error


def _asked(
    figure: go.Figure, kind: str, width: int, height: int | None, scale: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What kaleido is given: the figure and its size."""
    size = {"width": width, "height": height or figure.layout.height or 450}
    return figure.to_plotly_json(), {"format": kind, "scale": scale, **size}
