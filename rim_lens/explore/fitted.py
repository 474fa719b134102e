"""Figures that take the width of their cell.

A front end draws a FigureWidget before it stands in the page: it then has plotly's default width, and its caption lies
over its title. The widget here asks plotly to measure again, once it stands there and whenever its own width changes.
"""

import anywidget

ASK = """
export default {
  render({ el }) {
    const again = () => window.dispatchEvent(new Event("resize"));
    const observer = new ResizeObserver(() => requestAnimationFrame(again));
    observer.observe(el);
    const waiting = [200, 1000, 3000].map((milliseconds) => setTimeout(again, milliseconds)); // maps that come later
    return () => { observer.disconnect(); waiting.forEach(clearTimeout); };
  },
};
"""


class FitsItsCell(anywidget.AnyWidget):
    """Shows nothing; the figures beside it are drawn at the width of the cell."""

    _esm = ASK
