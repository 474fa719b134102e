"""A stage of an audit: a name, a function from the context to results, and the folder they are kept in.

A stage's folder appears by a rename when all its results are in it, so an interrupted audit goes on at the first stage
without a folder. Adding a stage means adding one entry to `rim_lens.audit.stages.STAGES`.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rim_lens.audit.files import write_json
from rim_lens.audit.plan import AuditPlan
from rim_lens.data.prompts import PromptSet, load_prompts
from rim_lens.errors import RimLensError
from rim_lens.model.adapter import base_and_adapter
from rim_lens.model.engine_model import EngineModel
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model
from rim_lens.processes import once
from rim_lens.results import Result, load_result
from rim_lens.training_time.checkpoints import Checkpoints

DONE = "stage.json"


@dataclass
class Context:
    """What stages share: the plan, the model at the reference checkpoint, prompts, and the results so far.

    The model is loaded when a stage first asks for it: an audit whose stages are all done loads none. With an engine
    there are two, `writer` and `model`, of which one is in memory: asking for one gives the other's memory back.
    """

    plan: AuditPlan
    results: dict[str, Result] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    claims: set[str] = field(default_factory=set)  # those whose verdicts have been printed
    _writer: EngineModel | None = field(default=None, init=False)

    @cached_property
    def checkpoints(self) -> Checkpoints | None:
        """The series, if the plan names one."""
        return Checkpoints.from_folder(self.plan.checkpoints) if self.plan.checkpoints else None

    @cached_property
    def model(self) -> LensModel:
        """The audited model: the series' reference checkpoint, or the model itself.

        A series' adapters stand on the base: an adapter that the plan names as its model is left out beside them.
        """
        self.close_writer()
        plan = self.plan
        model = load_model(
            self._name, device=plan.device, dtype=plan.dtype, tags=plan.tags, template_variables=plan.variables
        )
        if self.checkpoints is not None:
            self.checkpoints.check(model)
            self.checkpoints.load(model, self.checkpoints.reference)
        return model

    @property
    def _name(self) -> str:
        return self.plan.model if self.checkpoints is None else base_and_adapter(self.plan.model)[0]

    @property
    def writer(self) -> LensModel:
        """The audited model where its answers are written: in the plan's engine, else `model`.

        Raises:
            RimLensError: an engine, and a series whose reference checkpoint is not the model as it lies on disk.
        """
        if self.plan.engine == "transformers":
            return self.model
        if self._writer is None:
            if self.checkpoints is not None and self.checkpoints.reference.source is not None:
                raise RimLensError(
                    f"--engine {self.plan.engine} writes with the model's weights as they lie on disk, which the "
                    f"reference checkpoint {self.checkpoints.reference.name} changes; leave --engine out."
                )
            from accelerate.utils.memory import clear_device_cache

            if vars(self).pop("model", None) is not None:
                clear_device_cache(garbage_collection=True)
            engine = load_model(
                self._name,
                device=self.plan.device,
                dtype=self.plan.dtype,
                tags=self.plan.tags,
                template_variables=self.plan.variables,
                engine="vllm",
                tensor_parallel=self.plan.tensor_parallel,
            )
            assert isinstance(engine, EngineModel)
            self._writer = engine
        return self._writer

    def close_writer(self) -> None:
        """End the engine, where one was started, and give its memory back."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @property
    def series(self) -> Checkpoints:
        """The series, for stages that only run with one."""
        if self.checkpoints is None:
            raise RimLensError("This part of the audit needs a series of checkpoints; pass --checkpoints.")
        return self.checkpoints

    def prompts(self, kind: str) -> PromptSet:
        """The plan's sample of the harmful, harmless or maths prompts."""
        return self._whole(kind).sample(self.plan.n, self.plan.seed)

    def other_prompts(self, kind: str) -> PromptSet:
        """As many prompts of the set that are not in the plan's sample, for tests of what was chosen on the sample.

        Raises:
            RimLensError: the set is too small to be split.
        """
        whole = self._whole(kind)
        used = {prompt.id for prompt in self.prompts(kind)}
        rest = PromptSet(whole.name, whole.source, tuple(p for p in whole if p.id not in used), whole.licence)
        if len(rest) < self.plan.n:
            raise RimLensError(
                f"The set {whole.name} has {len(whole)} prompts: testing heads on prompts that they were not chosen on "
                f"takes {2 * self.plan.n}; use a larger set, a smaller --n or --no-heads."
            )
        return rest.sample(self.plan.n, self.plan.seed)

    def _whole(self, kind: str) -> PromptSet:
        source = getattr(self.plan, kind)
        whole = load_prompts(source, seed=self.plan.seed)
        if len(whole) < self.plan.n:
            raise RimLensError(f"The set {source} has {len(whole)} prompts but {self.plan.n} were asked for.")
        return whole


@dataclass(frozen=True)
class Stage:
    """One step of an audit. `measure` returns results by name; names are unique over all stages.

    `needs` are stages of another lane whose results it takes.
    """

    name: str
    title: str
    measure: Callable[[Context], Mapping[str, Result]]
    wanted: Callable[[AuditPlan], bool] = lambda plan: True
    needs: tuple[str, ...] = ()

    def run(self, context: Context, folder: Path) -> bool:
        """Load this stage's results, or measure and keep them; says whether it measured."""
        home = folder / self.name
        if once(home.is_dir):
            record = json.loads((home / DONE).read_text())
            context.results |= {name: load_result(home / name) for name in record["results"]}
            context.seconds[self.name] = record["seconds"]
            return False
        start = time.perf_counter()
        results = dict(self.measure(context))
        seconds = time.perf_counter() - start
        self.keep(results, seconds, folder, context.plan.digest)
        context.results |= results
        context.seconds[self.name] = seconds
        return True

    def keep(self, results: Mapping[str, Result], seconds: float, folder: Path, plan: str) -> None:
        """Save the results, and the digest of the plan, under a temporary name; rename the whole stage into place."""
        work = folder / f".{self.name}.partial"
        once(lambda: shutil.rmtree(work, ignore_errors=True))
        for name, result in results.items():
            result.save(work / name)
        record = {"stage": self.name, "results": list(results), "seconds": round(seconds, 2), "plan_sha256": plan}
        once(lambda: write_json(work / DONE, record))
        once(lambda: work.rename(folder / self.name))
