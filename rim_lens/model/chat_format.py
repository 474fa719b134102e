"""Old import path of what is in `rim_lens.chat.format` now."""

from rim_lens.chat.format import ChatFormat

__all__ = ["ChatFormat"]
