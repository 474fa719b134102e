"""What explorers share.

Whoever shows one is told when its state changes, and shows it as widgets or as static figures.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

NO_WIDGETS = "These are static figures, since linked views need widgets: pip install 'rim-lens[notebook]'."


def has_widgets() -> bool:
    """Whether the packages of the notebook extra that widgets need are installed."""
    return find_spec("ipywidgets") is not None and find_spec("anywidget") is not None


class Explorer:
    """State with listeners. A notebook shows it as linked widgets, or, without widgets, as figures and one sentence."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of the state."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    def widget(self) -> Any:
        """Linked widgets bound to this state."""
        raise TypeError(f"{type(self).__name__} has no widgets.")

    def static(self) -> list[Any]:
        """Figures and texts of the present state, in order."""
        raise TypeError(f"{type(self).__name__} has no figures.")

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        if has_widgets():
            display(self.widget())
            return
        for part in (HTML(f"<p>{NO_WIDGETS}</p>"), *self.static()):
            display(part)
