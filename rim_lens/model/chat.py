"""Old import path of what is in `rim_lens.chat` now."""

from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import SEGMENTS, Span, Thinking, segment_id
from rim_lens.chat.tags import ThinkTags, read_tags

__all__ = ["SEGMENTS", "Chat", "Span", "ThinkTags", "Thinking", "read_tags", "segment_id"]
