"""The model provider: `inspect eval … --model rim_lens/NAME` asks a LensModel.

1. The model is loaded by `load_model`, or is a LensModel that Python hands over.
2. Requests that wait at the same time are answered by one `generate`, in a thread, with the heads and neurons of the
   model arguments ablated (`batching`, `interventions`).
3. Rendered prompt, tokens and ablated units stand in the log as the raw call of every answer.

Greedy decoding unless a temperature is given; then each answer is sampled from `seed`, the prompt and the epoch alone.
"""

import gc
import hashlib
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import anyio.to_thread
from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelCall, ModelOutput
from inspect_ai.model._cache import epoch  # Inspect's own record of it; set before every call
from inspect_ai.tool import ToolChoice, ToolInfo

from rim_lens.behavior.generate import generate
from rim_lens.chat.chat import Chat
from rim_lens.chat.tags import read_tags
from rim_lens.errors import RimLensError
from rim_lens.evals.batching import Batcher
from rim_lens.evals.interventions import read_intervention
from rim_lens.evals.messages import Question, call_of, check_config, output_of, question_of
from rim_lens.evals.one_sentence import one_sentence
from rim_lens.evals.record import recorded
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model
from rim_lens.processes import n_processes

LOADING = ("adapter", "device", "dtype", "revision", "trust_remote_code", "device_map", "chat_template", "think_tags")
CHANGING = ("ablate_heads", "n_heads", "ablate_neurons", "positions")
LONGEST_ANSWER = 512  # tokens, where neither task nor command line says

Answered = tuple[ModelOutput, ModelCall]
# Taps belong to a model, and two providers may share one: with an ablation and without.
_one_at_a_time: WeakKeyDictionary[LensModel, threading.Lock] = WeakKeyDictionary()


class RimLensAPI(ModelAPI):
    """A LensModel behind Inspect's interface.

    Args:
        model_name: what `load_model` takes.
        base_url: not taken.
        api_key: not needed.
        config: generation options of the eval; looked at here so that one that cannot be honoured costs no time.
        lens_model: a model that is loaded already.
        batch_size: most requests answered together; `--max-connections` says how many Inspect asks at once.
        record: folder for what the model computed before each answer (`record.recorded`).
        model_args: LOADING as for `load_model` (`think_tags`: the two texts), CHANGING as for
            `interventions.read_intervention`.

    Raises:
        EvalError: an unknown argument, model, head, neuron or option; several processes.

    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's signature
        *,
        lens_model: LensModel | None = None,
        batch_size: int = 32,
        record: str | Path | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        with one_sentence():
            check_arguments(model_args, base_url, lens_model, batch_size)
            check_config(config)
            self.intervention = read_intervention(
                model_args.pop("ablate_heads", None),
                model_args.pop("n_heads", None),
                model_args.pop("ablate_neurons", None),
                model_args.pop("positions", "all"),
            )
            tags = read_tags(model_args.pop("think_tags", None))
            self.lens: LensModel = (
                lens_model if lens_model is not None else load_model(model_name, tags=tags, **model_args)
            )
            with self.intervention.on(self.lens):  # an unknown head is known before anything is asked
                pass
        self.batch_size, self.record = batch_size, None if record is None else Path(record).expanduser()
        self.batcher: Batcher[Question, Answered] = Batcher(self.answer, lambda question: question.kind, batch_size)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> Answered:
        """Answer one conversation. Raises RimLensError for what cannot be honoured or does not fit the context."""
        if tools:
            raise RimLensError("A rim_lens model calls no tools: run a task without them.")
        question = question_of(input, config, max_tokens=LONGEST_ANSWER, epoch=epoch.get(1))
        return await self.batcher(question)

    def answer(self, questions: Sequence[Question]) -> list[Answered | Exception]:
        """Answers to questions of one kind, in their order; one that cannot be asked gets its error."""
        with self._lock:
            answers: list[Any] = [self._chat(question) for question in questions]
            asked = [(i, questions[i], chat) for i, chat in enumerate(answers) if isinstance(chat, Chat)]
            if asked:
                with self.intervention.on(self.lens):
                    written = generate(
                        self.lens,
                        [chat for _, _, chat in asked],
                        max_new_tokens=questions[0].max_new_tokens,
                        cot_budget=questions[0].cot_budget,
                        temperature=questions[0].temperature,
                        seed=[seed_of(question, chat) for _, question, chat in asked],
                        batch_size=self.batch_size,
                        progress=False,
                    )
                    notes: list[dict[str, Any]] = [{} for _ in written]
                    if self.record is not None:
                        full = [one.full_chat for one in written]
                        notes = recorded(self.lens, full, self.intervention.in_words(), self.record)
                for (i, question, chat), one, note in zip(asked, written, notes, strict=True):
                    call = call_of(question, chat, one, self.intervention.in_words())
                    answers[i] = (output_of(one, chat, self.model_name, note), call)
        return answers

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of a text; Inspect's own count would fetch another model's tokenizer."""

        def count() -> int:
            with self._lock:
                return len(self.lens.encode(text))

        return await anyio.to_thread.run_sync(count)

    @property
    def _lock(self) -> threading.Lock:
        return _one_at_a_time.setdefault(self.lens, threading.Lock())

    def _chat(self, question: Question) -> Chat | RimLensError:
        """The rendered prompt, or why there is none."""
        try:
            chat = self.lens.render([question.messages], thinking=question.thinking, cot=question.cot)[0]
            room = question.max_new_tokens + question.cot_budget
            self.lens.check_length(len(chat) + room, f"{chat.request[:40]!r}… with its token budget")
        except RimLensError as error:
            return error
        return chat

    def max_connections(self) -> int:
        """As many requests as are answered together."""
        return self.batch_size

    def max_tokens(self) -> int:
        """Longest answer where nobody says."""
        return LONGEST_ANSWER

    def collapse_user_messages(self) -> bool:
        """Chat templates want user and assistant by turns."""
        return True

    def force_reasoning_history(self) -> Any:
        """A prefilled CoT must arrive; older ones are left out."""
        return "last"

    def close(self) -> None:
        """Let go of the model."""
        del self.lens
        gc.collect()


def check_arguments(
    model_args: dict[str, Any], base_url: str | None, lens_model: LensModel | None, batch_size: int
) -> None:
    """Raise a RimLensError for model arguments that mean nothing here."""
    known = (*LOADING, *CHANGING, "batch_size", "record", "lens_model")
    unknown = sorted(set(model_args) - set(known))
    if unknown:
        raise RimLensError(f"A rim_lens model has no argument {', '.join(unknown)}; there are {', '.join(known)}.")
    loading = sorted(set(model_args) & set(LOADING))
    if lens_model is not None and loading:
        raise RimLensError(f"The LensModel is loaded already: {', '.join(loading)} would change nothing; leave it out.")
    if base_url is not None:
        raise RimLensError(f"A rim_lens model runs in this process and has no base URL; leave {base_url} out.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise RimLensError(f"batch_size must be a whole number from 1, got {batch_size!r}.")
    if n_processes() > 1:
        raise RimLensError(
            "Inspect asks from one process: start it without accelerate or torchrun; device_map splits a model."
        )


def seed_of(question: Question, chat: Chat) -> int:
    """The seed of one answer: equal for equal seed, prompt and epoch, whatever else is asked.

    A new one without a seed.
    """
    if question.seed is None:
        return secrets.randbits(63)
    drawn = hashlib.sha256(repr((question.seed, question.epoch, chat.token_ids.tolist())).encode()).digest()
    return int.from_bytes(drawn[:8], "big")
