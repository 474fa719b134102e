"""vLLM in this process as an engine: its own scheduler and kernels write, its workers let passes be read and changed.

vLLM runs eagerly (hooks do not exist in a compiled graph) and with prefix caching; requests with edits have a salt, so
that no cache of one is another's.
"""

import os
import weakref
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

from rim_lens.engine.dialogue import Ask, Dialogue, Reply
from rim_lens.engine.edit import Edit
from rim_lens.engine.vllm_edits import EDITS
from rim_lens.errors import RimLensError

T = TypeVar("T")

INSIDE = "rim_lens.model.vllm_pass.Inside"  # the worker extension, imported in every worker
# One process where one rank suffices, objects of this package as arguments, and the runner whose batch is read here.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # in the words of CUDA and of torch on a CPU
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # where nobody says otherwise


class VLLMEngine:
    """One `vllm.LLM`; `close()` ends it and gives its memory back.

    Raises:
        RimLensError: vLLM is not installed or cannot load the model.
    """

    inside = True

    def __init__(self, location: str, *, tensor_parallel: int = 1, dtype: str = "auto", **options: Any) -> None:
        import torch

        os.environ |= SETTINGS
        if not torch.cuda.is_available():
            os.environ |= {name: value for name, value in ON_CPU.items() if name not in os.environ}
        try:
            import vllm
        except ImportError as error:
            raise RimLensError(
                "engine=\"vllm\" needs vLLM; install it with: pip install 'rim-lens[vllm]' (docs/howto/engine.md)."
            ) from error
        try:
            self.llm = vllm.LLM(
                model=location,
                tensor_parallel_size=tensor_parallel,
                dtype=dtype,
                enforce_eager=True,
                worker_extension_cls=INSIDE,
                **{"enable_prefix_caching": True, "disable_log_stats": True, **options},
            )
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            raise RimLensError(
                f"vLLM {vllm.__version__} cannot load {location} ({one_line(error)}); load it with load_model(name), "
                "or pass engine_options= that fit."
            ) from error
        self.version, self.tensor_parallel, self.name = vllm.__version__, tensor_parallel, f"vLLM {vllm.__version__}"
        self.config = self.llm.llm_engine.vllm_config
        self._numbers, self.stopped = count(), False
        self._end = weakref.finalize(self, ended, begun(self.llm.llm_engine.engine_core))

    def close(self) -> None:
        """End it, and give its memory back where no other engine of this process goes on (see `ended`)."""
        from accelerate.utils.memory import clear_device_cache

        self._end()
        vars(self).pop("llm", None)
        clear_device_cache(garbage_collection=True)

    def describe(self) -> dict[str, Any]:
        """Engine, version, dtype and parallelism."""
        dtype = str(self.config.model_config.dtype).removeprefix("torch.")
        return {"engine": "vllm", "version": self.version, "dtype": dtype, "tensor_parallel": self.tensor_parallel}

    def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension in every rank.

        Raises:
            RimLensError: a worker failed.
            torch.OutOfMemoryError: it has too little memory, which a smaller batch may mend.
        """
        import torch

        self._check()
        try:
            return self.llm.collective_rpc(method, args=args)
        except RimLensError:
            raise
        except Exception as error:
            if lacks_memory(error):
                raise torch.OutOfMemoryError(f"{one_line(error)}: a worker of {self.name} is out of memory.") from error
            raise RimLensError(f"{self.name}: a worker failed in {method} ({one_line(error)}).") from error

    def run(self, dialogues: Sequence[Dialogue[T]]) -> Iterator[tuple[int, T]]:
        """See `Engine.run`; all dialogues go through one dynamic batch.

        Raises:
            RimLensError: the engine stopped, now or before.
        """
        self._check()
        first = [next(dialogue) for dialogue in dialogues]
        edits = {id(edit): edit for ask in first for edit, _, _ in ask.edits}
        later = Registered(self, list(edits.values()))
        pending: dict[str, int] = {}
        engine = self.llm.llm_engine
        try:
            for number, ask in enumerate(first):
                pending[self._add(ask, later)] = number
            while pending:
                for output in self._step():
                    if not output.finished:
                        continue
                    number = pending.pop(output.request_id)
                    try:
                        ask = dialogues[number].send(reply_of(output.outputs[0]))
                    except StopIteration as end:
                        yield number, end.value
                    else:
                        pending[self._add(ask, later)] = number
        finally:
            if not self.stopped:
                if pending:
                    engine.abort_request(list(pending))
                later.drop()

    def _check(self) -> None:
        if self.stopped or not self._end.alive:
            raise RimLensError(f"{self.name} has {'stopped' if self.stopped else 'been closed'}; load the model anew.")

    def _step(self) -> list[Any]:
        """What one step of the batch has written.

        Raises:
            RimLensError: a worker ended or ran out of memory.
        """
        try:
            return self.llm.llm_engine.step()
        except Exception as error:
            self.stopped = True
            if lacks_memory(error):
                why, then = "ran out of memory", 'pass engine_options={"max_num_seqs": 32}, a smaller "max_model_len"'
            else:
                why, then = "stopped", "look at the workers' messages above"
            raise RimLensError(
                f"{self.name} {why} while it wrote ({one_line(error)}); {then} and load the model anew: an audit that "
                "is run again goes on after its finished stages."
            ) from error

    def _add(self, ask: Ask, edits: "Registered") -> str:
        import vllm
        from vllm.sampling_params import RequestOutputKind

        named = [[edits.number(edit), first, until] for edit, first, until in ask.edits]
        salt = {"cache_salt": f"{edits.salt} {named}"} if named else {}
        params = vllm.SamplingParams(
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            top_p=ask.top_p,
            top_k=ask.top_k or 0,
            min_p=ask.min_p or 0.0,
            seed=ask.seed if ask.temperature else None,
            stop=[ask.stop] if ask.stop else None,
            stop_token_ids=list(ask.ends),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            detokenize=bool(ask.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={EDITS: named} if named else None,
        )
        name = f"rim-lens-{next(self._numbers)}"
        prompt: Any = {"prompt_token_ids": list(ask.ids), **salt}
        self.llm.llm_engine.add_request(name, prompt, params)
        return name

    def token_logprobs(self, asks: Sequence[Ask], token_ids: Sequence[int]) -> list[list[float]]:
        """See `Engine.token_logprobs`; passes give all logits, so that nothing asks for these."""
        raise RimLensError(f"{self.name} gives logits by passes; use model.decision_logits.")


class Registered:
    """The edits that the workers hold now; a new one makes them take all anew."""

    _salts = count()

    def __init__(self, engine: VLLMEngine, edits: Sequence[Edit]) -> None:
        self.engine, self.edits, self.salt = engine, list(edits), next(self._salts)
        self.numbers = {id(edit): number for number, edit in enumerate(self.edits)}
        self._put()

    def number(self, edit: Edit) -> int:
        """The number of an edit in the workers."""
        if id(edit) not in self.numbers:
            self.numbers[id(edit)] = len(self.edits)
            self.edits.append(edit)
            self._put()
        return self.numbers[id(edit)]

    def drop(self) -> None:
        """Take them off."""
        if self.edits:
            self.engine.call("lens_drop_edits")

    def _put(self) -> None:
        if self.edits:
            plain = [{"site": edit.site, "factor": dict(edit.factor), "shift": dict(edit.shift)} for edit in self.edits]
            self.engine.call("lens_put_edits", plain)


def reply_of(completion: Any) -> Reply:
    """A completion's tokens, without the one that ended the turn."""
    ids = tuple(completion.token_ids)
    ended = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
    return Reply(ids[:-1] if ended else ids, ended)


def lacks_memory(error: BaseException) -> bool:
    """Whether a worker has too little memory; from another process only the words of its error arrive."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


_running: list[Any] = []  # the cores of this process's engines, and those of them that nobody uses any more
_unused: list[Any] = []


def begun(core: Any) -> Any:
    """Count the core of an engine in."""
    _running.append(core)
    return core


def ended(core: Any) -> None:
    """End an engine's core; together with the others of this process, which share what vLLM takes down with one."""
    _unused.append(core)
    if len(_unused) < len(_running):
        return
    for one in _unused:
        one.shutdown()
    _running.clear()
    _unused.clear()


def one_line(error: BaseException) -> str:
    """The first line of an error, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
