"""How every figure looks: colours, scales, fonts, and the words of captions and hovers.

Colours are of Okabe and Ito's palette, told apart by readers with any colour vision and legible on light and dark
ground; series differ in marker as well. Diverging scales (blue below zero, vermilion above) are centred at zero by
`diverging`; a figure names no colour scale of its own, so that a page can show it in light or dark by its template
alone.
"""

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A8F98"
SERIES = (BLUE, VERMILION, GREEN, PURPLE, GREY)
MARKERS = ("circle", "square", "diamond", "triangle-up", "x")
# colour and marker of each segment of a chat
SEGMENTS = {
    "system": (GREY, "x"),
    "user": (BLUE, "circle"),
    "assistant_tag": ("#56B4E9", "cross"),
    "think_open": (GREEN, "triangle-up"),
    "cot": (VERMILION, "square"),
    "think_close": (PURPLE, "triangle-down"),
    "response": ("#E69F00", "diamond"),
}
TOP, LINE, BAR = 74, 16, 62  # pixels: title and a line of caption, another line of it, a colour bar
LIFTED = 28  # plotly lifts a title by about this much where a horizontal colour bar stands above the plot
CAPTION_WIDTH = 105  # characters: what 700 pixels hold
# buttons that no figure has: the first uploads the figure to plotly's cloud, the others choose points for nothing
NO_BUTTONS = ("sendChartToCloud", "select2d", "lasso2d", "autoScale2d")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_LIGHT = {"ink": "#1c2126", "ground": "#ffffff", "grid": "#e3e6ea", "line": "#9aa1a9", "middle": "#f4f4f2"}
_DARK = {"ink": "#e6e8eb", "ground": "#15191e", "grid": "#2c333b", "line": "#6b747e", "middle": "#22282f"}


def template(dark: bool = False) -> go.layout.Template:
    """The plotly template of all figures, on light or on dark ground."""
    tone = _DARK if dark else _LIGHT
    axis = {
        "gridcolor": tone["grid"],
        "linecolor": tone["line"],
        "zerolinecolor": tone["line"],
        "tickcolor": tone["line"],
        "automargin": True,
    }
    diverging_scale = [[0, "#2b7bba"], [0.25, "#8fbfe0"], [0.5, tone["middle"]], [0.75, "#f0a07c"], [1, "#c9470c"]]
    sequential_scale = [[0, tone["middle"]], [0.5, "#6aaed6"], [1, "#08519c"]]
    if dark:
        diverging_scale = [[0, "#7cc4f5"], [0.25, "#2f6f9f"], [0.5, tone["middle"]], [0.75, "#a5502a"], [1, "#ff9d6b"]]
        sequential_scale = [[0, tone["middle"]], [0.5, "#2f6f9f"], [1, "#9bd3fa"]]
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": tone["ink"]},
            "paper_bgcolor": tone["ground"],
            "plot_bgcolor": tone["ground"],
            "colorway": list(SERIES),
            "colorscale": {"diverging": diverging_scale, "sequential": sequential_scale},
            "xaxis": axis,
            "yaxis": {**axis, "title": {"standoff": 8}},
            "legend": {"orientation": "h", "bgcolor": "rgba(0,0,0,0)", "x": 0}
            | {"yref": "container", "yanchor": "bottom", "y": 0.005},
            "hoverlabel": {"align": "left", "bgcolor": tone["ground"], "font": {"color": tone["ink"]}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": tone["line"], "activecolor": tone["ink"]}
            | {"remove": list(NO_BUTTONS)},
            "margin": {"l": 8, "r": 22, "t": TOP, "b": 8},
            "title": {"x": 0, "xref": "container", "pad": {"l": 8, "t": 10}}
            | {"yref": "container", "yanchor": "top", "y": 1},
        }
    )


def blank(title: str, caption: str, **layout: Any) -> go.Figure:
    """An empty figure with its title and, under it, its caption (which states n), and room above the plot for both.

    A `height` is that of a figure with one line of caption and no colour bar; what stands above the plot comes on top.
    """
    lines = textwrap.wrap(caption, CAPTION_WIDTH)
    with_bar = "coloraxis" in layout
    more = LINE * (len(lines) - 1) + (BAR if with_bar else 0)
    subtitle = {"text": "<br>".join(map(text, lines)), "font": {"size": 12}}
    heading: dict[str, Any] = {"text": text(title), "subtitle": subtitle}
    if with_bar:
        heading["pad"] = {"l": 8, "t": 10 + LIFTED}
    layout = {**layout, "height": layout.get("height", 380) + more}
    layout["margin"] = {"t": TOP + more, **layout.get("margin", {})}
    return go.Figure(layout=go.Layout(template=template(), title=heading)).update_layout(**layout)


def text(value: object) -> str:
    """A text as it stands: plotly reads tags in labels, and prompts or answers may hold some."""
    return html.escape(str(value))


def percent_axis(title: str, **more: object) -> dict[str, object]:
    """Settings of an axis of rates between 0 and 1, shown in percent."""
    return {"title": {"text": title}, "tickformat": ".0%", "range": [-0.03, 1.03], "tick0": 0, "dtick": 0.25, **more}


def error_bars(value: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, object]:
    """Bars from low to high around values; where there is no interval, none."""
    up, down = (high - value).clip(lower=0), (value - low).clip(lower=0)
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.6, "width": 4}


def diverging(values: np.ndarray, title: str) -> dict[str, object]:
    """A colour axis centred at zero that reaches as far to either side as the largest |value|."""
    finite = np.abs(values[np.isfinite(values)])
    reach = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    return {"autocolorscale": True, "cmin": -reach, "cmax": reach, "cmid": 0, "colorbar": colour_bar(title)}


def sequential(low: float, high: float, title: str) -> dict[str, object]:
    """A colour axis for values that have no sign, from low to high."""
    return {"autocolorscale": True, "cmin": low, "cmax": high if high > low else low + 1, "colorbar": colour_bar(title)}


def cells(values: np.ndarray) -> np.ndarray:
    """Values of a heatmap with None where there is none: JSON, which figures are sent as, has no NaN."""
    there = np.isfinite(values)
    return values if there.all() else np.where(there, values, np.array(None, dtype=object))


def colour_bar(title: str) -> dict[str, object]:
    """A bar above the plot, so that narrow screens keep their width for the plot."""
    place = {
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "len": 0.75,
        "thickness": 10,
    }
    return {**place, "title": {"text": text(title), "side": "top", "font": {"size": 12}}, "outlinewidth": 0}


def faint(colour: str, share: float = 0.16) -> str:
    """A colour as a wash, for bands."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, name: str) -> go.Scatter:
    """The area between two curves."""
    return go.Scatter(
        name=name,
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=faint(colour),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )


def percent(value: float, sign: bool = False) -> str:
    """0.219 as "21.9 %", kept on one line."""
    return "–" if not math.isfinite(value) else f"{100 * value:{'+' if sign else ''}.1f}\u00a0%".replace("-", "−")


def number(value: float, sign: bool = False) -> str:
    """Three significant digits, a true minus sign."""
    return "–" if not math.isfinite(value) else f"{value:{'+' if sign else ''}.3g}".replace("-", "−")


def correlation(r: float, low: float, high: float) -> str:
    """0.24 [−0.99, 0.90]."""
    return f"{r:.2f} [{low:.2f},\u00a0{high:.2f}]".replace("-", "−")


def interval(low: float, high: float, unit: str = "") -> str:
    """[low, high]; rates (unit "%") in percent, without a sign since one stands before it."""
    ends = [f"{100 * end:.1f}".replace("-", "−") if unit == "%" else number(end) for end in (low, high)]
    return f"[{ends[0]},\u00a0{ends[1]}]"


def points(difference: float, low: float, high: float) -> str:
    """A difference of rates with its interval: −21.9 points [−38.0, −5.1]."""
    return f"{100 * difference:+.1f} points [{100 * low:+.1f},\u00a0{100 * high:+.1f}]".replace("-", "−")


def p_value(p: float | None) -> str:
    """P = 0.03; p < 0.001 where it is smaller; nothing where there is none."""
    if p is None or not math.isfinite(p):
        return ""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.2g}"


def one_or_range(values: Sequence[int]) -> str:
    """N of several rows: "32", or "30 to 32"."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"
