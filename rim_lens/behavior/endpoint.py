"""Questions to a chat model behind any OpenAI-compatible endpoint, with a cache on disk.

Judges, annotators and writers ask through it.

Every answer is a JSON object of a form that the asker reads. The form is sent as a JSON schema (`response_format`),
which a server that has structured output enforces. What cannot be read is asked for again, each time at a higher
temperature with another seed. Answers are written to the cache as they come, so an interrupted run pays for nothing
twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rim_lens.behavior.replies import Unreadable, content_of, default_cache, read_reply
from rim_lens.cache_lines import Entry, LineCache, key_of
from rim_lens.engine.http import RETRY_STATUS, import_httpx, key_headers, seconds_of
from rim_lens.errors import RimLensError
from rim_lens.processes import gather_items, once, share
from rim_lens.progress import track

Answer = TypeVar("Answer")

GIVE_UP = 20  # so many questions in a row without one readable reply: the model does not write the form at all
HOTTER = 0.25  # temperature added with every attempt, up to 1
LONGEST = 8  # a reply cut by max_tokens is asked for again with twice as many, up to so many times max_tokens

_QUESTION_STATUS = frozenset({400, 413, 422})  # refused for what one question holds, its length for example
_OPTIONAL = (
    "response_format",
    "seed",
    "temperature",
)  # what a server may not have, in the order in which it is left out


@dataclass(frozen=True)
class Unanswered:
    """A question without a readable answer, and why."""

    reason: str


class Endpoint(Generic[Answer]):
    """Ask `model` at `base_url` (".../v1"), at most `concurrency` questions at a time.

    `system` is the instruction before every question; `read` makes an answer (a dataclass of JSON values) of a reply's
    JSON object and raises `Unreadable` for another form; `schema` is the JSON schema of that object; `role` and
    `wanted` name both in errors ("judge", "grade"). `key_env`: the environment variable that holds the key; by default
    `RIM_LENS_API_KEY`, which may be missing. `cache`: a JSONL file that is appended to (default: one for each server,
    model and instruction in the package's cache folder; False: none); answers found there are not asked for again.
    `retries`: further attempts after 408, 409, 425, 429, 5xx, a timeout, a lost connection or an unreadable reply;
    after an error of the server or the connection they wait `backoff` · 2^k seconds (or what Retry-After says, at most
    `longest_wait`).

    Raises:
        RimLensError: httpx or the named key is missing, the endpoint refuses the key or the model, or the attempts are
            used up; answers that have come in by then are in the cache.

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
        schema: Mapping[str, Any] | None = None,
        key_env: str | None = None,
        cache: str | Path | bool | None = None,
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
        self.system, self.read, self.role, self.wanted, self.schema = system, read, role, wanted, schema
        self.headers = key_headers(key_env, role)
        self.retries, self.timeout, self.concurrency = retries, timeout, concurrency
        self.backoff, self.longest_wait, self.max_tokens = backoff, longest_wait, max_tokens
        if cache is None or cache is True:
            cache = default_cache(role, self.url, model, system)
        self.cache = LineCache(Path(cache) if cache else None, read)
        self.unanswered: dict[str, Unanswered] = {}
        self._without: set[str] = set()  # optional parts of a request that this server has refused
        self._readable = threading.Event()
        self._httpx = import_httpx(role)

    def ask(
        self,
        questions: Sequence[str],
        names: Sequence[str],
        check: Callable[[str, Answer], None] = lambda question, answer: None,
    ) -> list[Answer]:
        """One answer per question, equal questions asked once.

        `names` say in errors what a question was about; `check` raises `Unreadable` for an answer that does not fit its
        question, which is then asked again.

        Raises:
            RimLensError: a question stayed without a readable answer; all others have been asked by then.

        """
        answers = list[Answer]()
        for name, answer in zip(names, self.ask_all(questions, names, check), strict=True):
            if isinstance(answer, Unanswered):
                raise RimLensError(self._nothing(name, answer.reason))
            answers.append(answer)
        return answers

    def ask_all(
        self,
        questions: Sequence[str],
        names: Sequence[str],
        check: Callable[[str, Answer], None] = lambda question, answer: None,
    ) -> list[Answer | Unanswered]:
        """As `ask`, with `Unanswered` where no attempt gave a readable answer; those are asked again by the next call.

        Raises:
            RimLensError: none of the first 20 questions got a readable answer, or the server cannot be used.

        """
        keys = [key_of(self.url, self.model, self.system, question) for question in questions]
        known = once(lambda: {k: self.cache[k] for k in keys if k in self.cache})
        missing = {k: (q, n) for k, q, n in zip(keys, questions, names, strict=True) if k not in known}
        order = list(missing)
        mine = share(len(order))
        self.unanswered = {}
        if mine:
            self._ask_each({order[i]: missing[order[i]] for i in mine}, check)
        here: list[Answer | Unanswered] = [self.unanswered.get(k) or self.cache[k] for k in (order[i] for i in mine)]
        asked = dict(zip(order, gather_items(len(order), mine, here), strict=True))
        self.cache.remember(known | {k: a for k, a in asked.items() if not isinstance(a, Unanswered)})
        return [known[k] if k in known else asked[k] for k in keys]

    def _ask_each(self, missing: dict[str, tuple[str, str]], check: Callable[[str, Answer], None]) -> None:
        """Ask what the cache lacks; the first failure of the server stops what has not begun and is raised."""
        with (
            self._httpx.Client(timeout=self.timeout, headers=self.headers) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            asked = [pool.submit(self._ask, client, k, q, n, check) for k, (q, n) in missing.items()]
            try:
                for future in track(as_completed(asked), f"{self.role}: {self.model}", total=len(asked)):
                    future.result()
                    if len(self.unanswered) >= GIVE_UP and not self._readable.is_set():
                        key, last = list(self.unanswered.items())[-1]
                        raise RimLensError(
                            self._nothing(missing[key][1], last.reason, f"{GIVE_UP} others before it and ")
                        )
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _ask(self, client: Any, key: str, question: str, name: str, check: Callable[[str, Answer], None]) -> None:
        """Put a question until its answer is in the cache, or note it as unanswered."""
        max_tokens, reason, served = self.max_tokens, "", False
        for attempt in range(self.retries + 1):
            pause = self.backoff * 2**attempt
            try:
                reply = self._post(client, self._body(question, attempt, max_tokens))
                if reply.status_code == 200:
                    served = True
                    text, cut = content_of(reply)
                    room, max_tokens = max_tokens, min((1 + cut) * max_tokens, LONGEST * self.max_tokens)
                    answer = self._read(text, room if cut else None)
                    check(question, answer)
                    self.cache.add(key, answer)
                    self._readable.set()
                    return
                reason = f"status {reply.status_code}: {reply.text[:120]}"
                if reply.status_code in _QUESTION_STATUS:
                    self.unanswered[key] = Unanswered(reason)
                    return
                if reply.status_code not in RETRY_STATUS:
                    raise RimLensError(
                        f"The {self.role} at {self.url} refused the question on {name[:60]!r} ({reason}); "
                        "check the address, the model name and the key."
                    )
                served, pause = False, seconds_of(reply.headers.get("retry-after"), pause)
            except Unreadable as error:
                reason = f"unreadable reply: {error}"
                continue  # the server is well, so there is nothing to wait for
            except self._httpx.TransportError as error:
                served, reason = False, f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(min(pause, self.longest_wait))
        if not served:
            raise RimLensError(self._nothing(name, reason))
        self.unanswered[key] = Unanswered(reason)

    def _read(self, text: str, cut_at: int | None) -> Answer:
        """The answer in a reply, which was cut after so many tokens; raises `Unreadable`."""
        try:
            return read_reply(text, self.read)
        except Unreadable as error:
            if cut_at is None:
                raise
            raise Unreadable(f"cut after {cut_at} tokens ({error}); raise max_tokens={self.max_tokens}") from error

    def _body(self, question: str, attempt: int, max_tokens: int) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": question}],
            "temperature": min(1.0, HOTTER * attempt),
            "seed": attempt,
            "max_tokens": max_tokens,
        }
        if self.schema is not None:
            form = {"name": self.wanted, "schema": dict(self.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return {name: value for name, value in body.items() if name not in self._without}

    def _post(self, client: Any, body: dict[str, Any]) -> Any:
        """Send a request; one that the server finds malformed is sent again without what it may not have."""
        reply, left_out = client.post(self.url, json=body), set[str]()
        for name in _OPTIONAL:
            if reply.status_code not in (400, 422) or name not in body:
                continue
            body = {k: v for k, v in body.items() if k != name}
            left_out.add(name)
            reply = client.post(self.url, json=body)
        if reply.status_code == 200:
            self._without |= left_out
        return reply

    def _nothing(self, name: str, reason: str, others: str = "") -> str:
        place = f"in the cache {self.cache.path}" if self.cache.path else "lost with cache=False"
        return (
            f"The {self.role} at {self.url} gave no {self.wanted} for {others}the request {name[:60]!r} in "
            f"{self.retries + 1} attempts (last: {reason}); run again, answers so far are {place}."
        )
