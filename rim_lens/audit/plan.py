"""What an audit is asked to do; two audits with the same plan may share a folder, others may not."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rim_lens.audit.extent import QUICK, WHOLE, Extent
from rim_lens.audit.files import write_json
from rim_lens.behavior.limits import Budget
from rim_lens.chat.tags import ThinkTags, read_tags
from rim_lens.chat.template import read_variables
from rim_lens.claims.claims import margins_of
from rim_lens.errors import RimLensError

PLAN_FILE = "plan.json"
SMALLEST_SET = 32  # below this an interval is wider than any finding


@dataclass(frozen=True)
class AuditPlan:
    """The choices that decide an audit's numbers.

    `model`: as for `load_model`. `checkpoints`: a folder with a series, or None. `finetune`: worked problems or a
    training plan that the series is made from. `harmful`, `harmless`, `maths`: prompt sets by name or path. `n`:
    prompts per set. `quick` leaves out what `QUICK` names. `patterns`, `heads` and `neurons` say whether the stages on
    reasoning patterns, inference time and training time run; `prefilled` are the given CoTs of harmful requests where
    the first does not. `cot_budget`, `temperature`, `top_p` and `samples`: as for `measure_rim`; what is measured
    inside the model reads each prompt's first answer. `n_controls`: random head or neuron sets per causal test.
    `device` and `dtype`: as for `load_model`. `engine` writes the answers ("vllm", over `tensor_parallel` devices);
    transformers reads and changes the model, and writes at the checkpoints of a series. `think_tags`: the texts that
    open and close a CoT, where the template's own are not found. `template_variables`: variables of the chat template,
    each NAME=VALUE. `margins`: the smallest
    effect of interest of each claim (`rim_lens.claims`), which the plan file fixes before a prompt is read.
    """

    model: str
    checkpoints: str | None = None
    finetune: str | None = None
    harmful: str = "harmful"
    harmless: str = "harmless"
    maths: str = "maths"
    n: int = SMALLEST_SET
    quick: bool = False
    seed: int = 0
    prefilled: tuple[str, ...] = ("effort_minimizing", "careful", "neutral", "irrelevant")
    patterns: bool = True
    heads: bool = True
    neurons: bool = True
    n_controls: int = 100
    max_new_tokens: int = 24
    maths_tokens: int = 40
    cot_budget: Budget = 96
    temperature: float | None = None
    top_p: float | None = None
    samples: int = 1
    batch_size: int = 32
    device: str | None = None
    dtype: str | None = None
    engine: str = "transformers"
    tensor_parallel: int = 1
    think_tags: tuple[str, str] | None = None
    template_variables: tuple[str, ...] = ()
    margins: dict[str, float] = field(default_factory=margins_of)

    def __post_init__(self) -> None:
        margins_of(self.margins)
        if self.n < SMALLEST_SET:
            raise RimLensError(f"An audit of {self.n} prompts per set says nothing; use at least {SMALLEST_SET}.")
        if self.n_controls < 1:
            raise RimLensError(f"n_controls is {self.n_controls}: a causal test needs random sets; use 19 or more.")
        if self.engine not in ("transformers", "vllm"):
            raise RimLensError(f'There is no engine {self.engine!r}; use "transformers" or "vllm".')
        if self.tensor_parallel != 1 and self.engine != "vllm":
            raise RimLensError("Layers are split over devices by vLLM alone; add --engine vllm to --tensor-parallel.")

    @property
    def extent(self) -> Extent:
        """How much is measured."""
        return QUICK if self.quick else WHOLE

    @property
    def asks_patterns(self) -> bool:
        """Whether the stage on reasoning patterns runs."""
        return self.patterns and self.extent.given_cots

    @property
    def given_cots(self) -> tuple[str, ...]:
        """The classes of given CoTs that the behaviour stage asks harmful requests with."""
        return () if self.asks_patterns or not self.extent.given_cots else self.prefilled

    @property
    def sampling(self) -> dict[str, Any]:
        """How answers are drawn, as `generate` takes it."""
        return {"temperature": self.temperature, "top_p": self.top_p, "samples": self.samples}

    @property
    def tags(self) -> ThinkTags | None:
        """The think tags as `load_model` takes them."""
        return read_tags(self.think_tags)

    @property
    def variables(self) -> dict[str, object]:
        """The template variables as `load_model` takes them."""
        return read_variables(self.template_variables)

    @property
    def digest(self) -> str:
        """sha256 over all choices."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def claim_folder(plan: AuditPlan, out: Path) -> None:
    """Make `out` the folder of this plan, or find that it already is.

    Raises:
        RimLensError: the folder holds another run, or something that is not an audit.
    """
    path = out / PLAN_FILE
    if path.is_file():
        try:
            other = json.loads(path.read_text())
        except ValueError as error:
            raise RimLensError(f"{path} cannot be read ({error}); remove the folder or choose another one.") from error
        mine = json.loads(json.dumps(asdict(plan)))
        differing = [key for key in mine if other.get(key) != mine[key]]
        if differing:
            raise RimLensError(
                f"The folder {out} holds another run (it differs in {', '.join(differing)}); "
                "choose another --out or remove it."
            )
        return
    for unfinished in out.glob(f".{PLAN_FILE}-*"):  # of a process that was killed while it wrote the plan
        unfinished.unlink(missing_ok=True)
    if out.exists() and any(out.iterdir()):
        raise RimLensError(f"The folder {out} is not empty and holds no audit; choose another --out.")
    write_json(path, asdict(plan))


def release_folder(out: Path) -> None:
    """Give a folder back that was claimed but holds no finished stage, so that a corrected plan may use it."""
    stages = out / "stages"
    if stages.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in stages.iterdir()):
        return
    shutil.rmtree(stages, ignore_errors=True)
    (out / PLAN_FILE).unlink(missing_ok=True)
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
