"""Answers that cost something, kept on disk as they come: one JSON line each, in a file that is only appended to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")
Entry = dict[str, Any]


def key_of(*parts: Any) -> str:
    """The hash of JSON values under which an answer is kept."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class LineCache(Generic[Answer]):
    """Answers by question hash, one JSON line each; a line cut by a crash is ignored and asked for again."""

    def __init__(self, path: Path | None, read: Callable[[Entry], Answer]) -> None:
        self.path, self._answers, self._lock = path, dict[str, Answer](), threading.Lock()
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        for line in text.split("\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                self._answers[entry["key"]] = read(entry)
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def remember(self, answers: Mapping[str, Answer]) -> None:
        """Keep these answers in memory; whoever asked for them has written them down."""
        self._answers |= answers

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; on disk before it counts as answered."""
        line = json.dumps({"key": key, **vars(answer)}, ensure_ascii=False) + "\n"
        with self._lock:
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line)
            self._answers[key] = answer
