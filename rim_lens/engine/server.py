"""A server with the completions protocol as an engine: behaviour only.

Prompts are sent as token ids where the server takes ids and gives ids back (vLLM's does). Else as text, if the
tokenizer makes the very ids of that text; then the ids of a reply are those of its text after the prompt. Replies are
written to a cache as they come, so that an interrupted run asks nothing twice.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rim_lens.cache import cache_folder
from rim_lens.cache_lines import Entry, LineCache, key_of
from rim_lens.chat.format import ChatFormat
from rim_lens.engine.dialogue import Ask, Dialogue, Reply
from rim_lens.engine.http import RETRY_STATUS, import_httpx, key_headers, seconds_of
from rim_lens.errors import RimLensError

T = TypeVar("T")

REFUSED = frozenset({400, 422})  # the statuses of a request in a form that a server does not accept
MOST_SCORED = 128  # token ids whose log-probabilities vLLM's server gives at once


class CompletionsServer:
    """`model` at `base_url` (".../v1"), asked at most `concurrency` questions at a time.

    `key_env`: the environment variable that holds the key; by default `RIM_LENS_API_KEY`, which may be missing.
    `cache`:
    a JSONL file (default: one for each server and model in the package's cache folder; False: none). `retries`: further
    attempts after 408, 409, 425, 429, 5xx, a timeout or a lost connection, after `backoff` · 2^k seconds or what
    Retry-After says, at most `longest_wait`.

    Raises:
        RimLensError: httpx or the named key is missing, or the server refuses the key, the model or a prompt, or the
            attempts are used up; replies that have come in by then are in the cache.
    """

    inside = False

    def __init__(
        self,
        base_url: str,
        model: str,
        chat_format: ChatFormat,
        *,
        key_env: str | None = None,
        cache: str | Path | bool | None = None,
        retries: int = 4,
        timeout: float = 600.0,
        concurrency: int = 16,
        backoff: float = 1.0,
        longest_wait: float = 60.0,
    ) -> None:
        self.base_url, self.model, self.chat_format = base_url.rstrip("/"), model, chat_format
        self.url = self.base_url + "/completions"
        self.name = f"{model} at {self.base_url}"
        self.retries, self.concurrency = retries, concurrency
        self.backoff, self.longest_wait = backoff, longest_wait
        self._httpx = import_httpx("model")
        self._client = self._httpx.Client(timeout=timeout, headers=key_headers(key_env, "model"))
        if cache is None or cache is True:
            cache = cache_folder() / "written" / f"{key_of(self.url, model)[:16]}.jsonl"
        self.cache: LineCache[Reply] = LineCache(Path(cache) if cache else None, read_reply)
        self._takes_ids: bool | None = None  # unknown before the first reply

    def describe(self) -> dict[str, Any]:
        """What is known of it from outside."""
        return {"server": self.base_url, "sends": "token ids" if self._takes_ids else "text"}

    def context(self) -> int | None:
        """The longest sequence in tokens that the server's list of models names; None where it names none."""
        try:
            listed = self._client.get(self.base_url + "/models").json()["data"]
            entry = next(one for one in listed if one.get("id") == self.model)
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration, self._httpx.TransportError):
            return None
        length = entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx_train")
        return int(length) if length else None

    def run(self, dialogues: Sequence[Dialogue[T]]) -> Iterator[tuple[int, T]]:
        """See `Engine.run`; dialogues go on in this thread, only requests wait in others."""
        waiting: dict[Future[Reply], int] = {}
        started = iter(enumerate(dialogues))
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while True:
                    while len(waiting) < self.concurrency and (new := next(started, None)) is not None:
                        number, dialogue = new
                        waiting[pool.submit(self.reply, next(dialogue))] = number
                    if not waiting:
                        return
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        number = waiting.pop(future)
                        try:
                            ask = dialogues[number].send(future.result())
                        except StopIteration as end:
                            yield number, end.value
                        else:
                            waiting[pool.submit(self.reply, ask)] = number
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def reply(self, ask: Ask) -> Reply:
        """The reply to one question, from the cache where it was put before."""
        key = key_of(self.url, self.model, asdict(ask))
        if key not in self.cache:
            self.cache.add(key, self._asked(ask))
        return self.cache[key]

    def _asked(self, ask: Ask) -> Reply:
        if self._takes_ids is not False:
            answer = self._post(self._body(ask, by_ids=True), ask)
            choice = None if answer.status_code in REFUSED else choice_of(answer)
            if choice is not None and choice.get("token_ids") is not None:
                self._takes_ids = True
                return reply_by_ids(choice, ask)
            if self._takes_ids:
                raise self._refused(ask, answer)
        answer = self._post(self._body(ask, by_ids=False), ask)
        if answer.status_code in REFUSED:
            raise self._refused(ask, answer)
        self._takes_ids = False
        choice = choice_of(answer)
        ids = self.chat_format.encode_after(ask.text, choice["text"])
        return Reply(ids[: ask.max_tokens], choice.get("finish_reason") == "stop")

    def _body(self, ask: Ask, *, by_ids: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(ask.ids) if by_ids else self._text(ask),
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
        }
        if ask.temperature > 0:
            cuts = {"top_p": ask.top_p if ask.top_p < 1 else None, "top_k": ask.top_k, "min_p": ask.min_p}
            body |= {name: value for name, value in cuts.items() if value is not None}
        if by_ids:
            body |= {"stop_token_ids": list(ask.ends), "return_token_ids": True, "skip_special_tokens": False}
            body |= {"stop": ask.stop} if ask.stop else {}
        return body

    def _text(self, ask: Ask) -> str:
        """The text for a server that puts BOS before what it is sent, where its tokenizer does."""
        tokenizer = self.chat_format.tokenizer
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        return ask.text.removeprefix(tokenizer.bos_token) if adds_bos else ask.text

    def _post(self, body: dict[str, Any], ask: Ask) -> Any:
        """The server's answer, a failure that may pass tried again."""
        reason = ""
        for attempt in range(self.retries + 1):
            pause = self.backoff * 2**attempt
            try:
                answer = self._client.post(self.url, json=body)
                if answer.status_code == 200 or answer.status_code in REFUSED:
                    return answer
                reason = f"status {answer.status_code}: {answer.text[:120]}"
                if answer.status_code not in RETRY_STATUS:
                    raise self._refused(ask, answer)
                pause = seconds_of(answer.headers.get("retry-after"), pause)
            except self._httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(min(pause, self.longest_wait))
        place = f"in the cache {self.cache.path}" if self.cache.path else "lost with cache=False"
        raise RimLensError(
            f"The server at {self.url} gave no completion in {self.retries + 1} attempts (last: {reason}); run again, "
            f"replies so far are {place}."
        )

    def _refused(self, ask: Ask, answer: Any) -> RimLensError:
        return RimLensError(
            f"The server at {self.url} refused to continue {ask.text[-60:]!r} (status {answer.status_code}: "
            f"{answer.text[:160]}); check the address, the model name, the key and the length of the prompt."
        )

    def token_logprobs(self, asks: Sequence[Ask], token_ids: Sequence[int]) -> list[list[float]]:
        """See `Engine.token_logprobs`; vLLM's server gives them for up to 128 token ids."""
        wanted = list(token_ids)
        if len(wanted) > MOST_SCORED:
            raise self._without_logprobs(f"{len(wanted)} tokens were asked for, it gives at most {MOST_SCORED}")

        def one(ask: Ask) -> list[float]:
            body = self._body(ask, by_ids=True)
            body |= {"logprobs": 1, "logprob_token_ids": wanted, "return_tokens_as_token_ids": True}
            answer = self._post(body, ask)
            if answer.status_code in REFUSED:
                raise self._without_logprobs(answer.text[:120])
            top = ((choice_of(answer).get("logprobs") or {}).get("top_logprobs") or [{}])[0]
            logprobs = {name: float(value) for name, value in top.items()}
            missing = [token for token in wanted if f"token_id:{token}" not in logprobs]
            if missing:
                raise self._without_logprobs(f"it left out {len(missing)} of {len(wanted)} tokens")
            return [logprobs[f"token_id:{token}"] for token in wanted]

        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(one, asks))

    def _without_logprobs(self, why: str) -> RimLensError:
        return RimLensError(
            f"The server at {self.base_url} does not give the log-probabilities of chosen tokens ({why}); use vLLM's "
            "server, or load the weights with load_model(name)."
        )


def choice_of(answer: Any) -> dict[str, Any]:
    """The one completion of a server's answer; a RimLensError where the body has another form."""
    try:
        choice = answer.json()["choices"][0]
        choice["text"]
    except (ValueError, LookupError, TypeError) as error:
        raise RimLensError(
            f"{answer.url} answered {answer.text[:80]!r}, which is not a completion; give the address of a server "
            "with /v1/completions."
        ) from error
    return choice


def reply_by_ids(choice: dict[str, Any], ask: Ask) -> Reply:
    """A completion with token ids; the id that ended the turn stands last in them, unless the server left it out."""
    ids = tuple(int(token) for token in choice["token_ids"])
    if ids and ids[-1] in ask.ends:
        return Reply(ids[:-1], True)
    return Reply(ids, choice.get("finish_reason") == "stop" and choice.get("stop_reason") != (ask.stop or None))


def read_reply(entry: Entry) -> Reply:
    """A reply as the cache has it."""
    return Reply(tuple(int(token) for token in entry["ids"]), bool(entry["ended"]))
