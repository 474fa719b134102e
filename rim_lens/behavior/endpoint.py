"""Questions to a chat model behind any OpenAI-compatible endpoint, with an on-disk cache: judges, annotators and writers.

Every answer is a JSON object of a form that the asker reads; what cannot be read is asked for again. Answers are written to
the cache before the next question is counted, so an interrupted run pays for nothing twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Generic, TypeVar

from rim_lens.errors import RimLensError
from rim_lens.processes import gather_items, once, share
from rim_lens.progress import track

Answer = TypeVar("Answer")
Entry = dict[str, Any]

_FENCE = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)
_RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class Unreadable(ValueError):
    """A reply is not in the form asked for."""


class Endpoint(Generic[Answer]):
    """Ask `model` at `base_url` (".../v1"), at most `concurrency` questions at a time.

    `system` is the instruction before every question; `read` makes an answer (a dataclass of JSON values) of a reply's JSON
    object and raises `Unreadable` for another form; `role` and `wanted` name both in errors ("judge", "grade"). `cache`: a
    JSONL file that is appended to; answers found there are not asked for again. `retries`: further attempts after 408, 409,
    425, 429, 5xx, a timeout, a lost connection or an unreadable reply, waiting `backoff` · 2^k seconds (or what Retry-After
    says, at most `longest_wait`).

    Raises:
        RimLensError: httpx is missing, the endpoint refuses a question, or the attempts are used up; answers that have come
            in by then are in the cache.

    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        system: str,
        read: Callable[[Entry], Answer],
        role: str,
        wanted: str,
        api_key: str | None = None,
        cache: str | Path | None = None,
        retries: int = 4,
        timeout: float = 60.0,
        concurrency: int = 8,
        backoff: float = 1.0,
        longest_wait: float = 60.0,
        max_tokens: int = 300,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise RimLensError(f"The {role}'s address {base_url!r} must begin with http:// or https://.")
        self.url, self.model = base_url.rstrip("/") + "/chat/completions", model
        self.system, self.read, self.role, self.wanted = system, read, role, wanted
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.retries, self.timeout, self.concurrency = retries, timeout, concurrency
        self.backoff, self.longest_wait, self.max_tokens = backoff, longest_wait, max_tokens
        self.cache = Cache(Path(cache) if cache else None, read)
        self._httpx = _import_httpx(role)

    def ask(
        self,
        questions: Sequence[str],
        names: Sequence[str],
        check: Callable[[str, Answer], None] = lambda question, answer: None,
    ) -> list[Answer]:
        """One answer a question, equal questions asked once.

        `names` say in errors what a question was about; `check` raises `Unreadable` for an answer that does not fit its
        question, which is then asked again.
        """
        keys = [self._key(question) for question in questions]
        found = once(lambda: {k: self.cache[k] for k in keys if k in self.cache})
        missing = {k: (q, n) for k, q, n in zip(keys, questions, names, strict=True) if k not in found}
        order = list(missing)
        mine = share(len(order))
        if mine:
            self._ask_all({order[i]: missing[order[i]] for i in mine}, check)
        asked = gather_items(len(order), mine, [self.cache[order[i]] for i in mine])
        found |= zip(order, asked, strict=True)
        self.cache.remember(found)
        return [found[k] for k in keys]

    def _ask_all(self, missing: dict[str, tuple[str, str]], check: Callable[[str, Answer], None]) -> None:
        """Ask what the cache lacks; the first failure stops what has not begun and is raised."""
        with (
            self._httpx.Client(timeout=self.timeout, headers=self.headers) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            asked = [pool.submit(self._ask, client, k, q, n, check) for k, (q, n) in missing.items()]
            try:
                for future in track(as_completed(asked), f"{self.role}: {self.model}", total=len(asked)):
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _ask(self, client: Any, key: str, question: str, name: str, check: Callable[[str, Answer], None]) -> None:
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        reason = ""
        for attempt in range(self.retries + 1):
            pause = self.backoff * 2**attempt
            try:
                reply = client.post(self.url, json=body)
                if reply.status_code == 200:
                    answer = read_reply(_content(reply), self.read)
                    check(question, answer)
                    self.cache.add(key, answer)
                    return
                reason = f"status {reply.status_code}: {reply.text[:120]}"
                if reply.status_code not in _RETRY_STATUS:
                    raise RimLensError(
                        f"The {self.role} at {self.url} refused the question on {name[:60]!r} ({reason}); "
                        "check the address, the model name and the key."
                    )
                pause = _seconds(reply.headers.get("retry-after"), pause)
            except Unreadable as error:
                reason = f"unreadable reply: {error}"
            except self._httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(min(pause, self.longest_wait))
        raise RimLensError(
            f"The {self.role} at {self.url} gave no {self.wanted} for the request {name[:60]!r} in {self.retries + 1} "
            f"attempts (last: {reason}); run again, answers so far are "
            f"{'in the cache' if self.cache.path else 'lost without cache='}."
        )

    def _key(self, question: str) -> str:
        parts = json.dumps([self.url, self.model, self.system, question])
        return hashlib.sha256(parts.encode()).hexdigest()


class Cache(Generic[Answer]):
    """Answers by question hash, one JSON line each; a line cut by a crash is ignored and asked for again."""

    def __init__(self, path: Path | None, read: Callable[[Entry], Answer]) -> None:
        self.path, self._answers, self._lock = path, dict[str, Answer](), threading.Lock()
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        for line in text.split("\n"):
            entry = _json_object(line)
            with contextlib.suppress(Unreadable):
                if entry is not None and "key" in entry:
                    self._answers[entry["key"]] = read(entry)
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def remember(self, answers: Mapping[str, Answer]) -> None:
        """Know these answers from now on; whoever asked for them has written them down."""
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


def read_reply(text: str, read: Callable[[Entry], Answer]) -> Answer:
    """Read a reply; raises `Unreadable` unless it is exactly the JSON object asked for, fenced or not."""
    fenced = _FENCE.match(text)
    entry = _json_object(fenced.group(1) if fenced else text)
    if entry is None:
        raise Unreadable(f"{text[:80]!r} is no JSON object")
    return read(entry)


def _json_object(text: str) -> Entry | None:
    try:
        entry = json.loads(text)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None


def _content(reply: Any) -> str:
    """The text of a chat completion; raises `Unreadable` where the body has another form."""
    try:
        content = reply.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise Unreadable(f"{reply.text[:80]!r} is no chat completion") from error
    if not isinstance(content, str):
        raise Unreadable("the chat completion holds no text")
    return content


def _seconds(header: str | None, otherwise: float) -> float:
    try:
        return max(0.0, float(header)) if header else otherwise
    except ValueError:
        return otherwise  # Retry-After may also be a date


def _import_httpx(role: str) -> Any:
    try:
        import httpx
    except ImportError as error:
        raise RimLensError(
            f"A {role} behind an endpoint needs httpx; install it with: pip install 'rim-lens[judge]'."
        ) from error
    return httpx
