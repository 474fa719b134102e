"""finetune: train arms on CoT data, each with every seed, and save their steps as a series that `Checkpoints` reads.

1. The plan is read (settings, arms or worked problems) and every row rendered, before a model is loaded.
2. Each run, an arm with a seed, starts from the same weights: the base, or the base with an adapter, which is trained
   on.
3. trl's SFTTrainer learns the assistant's tokens; the steps asked for are saved, series.json after each. A folder of
   the same plan goes on with the first run that is not whole.

With held neurons (`held_neurons`) a start adapter is merged first and a new one trained on top, since in a product BA
the rows of neurons stand still only where they were zero. Penalties (`shift_penalty`) keep their activation, or the
stream along a direction, near what it was before training.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from rim_lens.chat.format import ChatFormat
from rim_lens.chat.tags import ThinkTags
from rim_lens.errors import RimLensError
from rim_lens.model.batch import make_batch
from rim_lens.model.load import chosen_device, chosen_dtype, load_chat_format, read_weights, resolve
from rim_lens.model.peft_merge import merge_adapter
from rim_lens.patterns.held_neurons import Held, Rows, held_places, hold, read_neurons
from rim_lens.patterns.saved_steps import SavedSeries, begin_series, plain_lora_config, save_adapter
from rim_lens.patterns.shift_penalty import DirectionShift, NeuronShift, ShiftPenalty
from rim_lens.patterns.training_plan import TrainingPlan, TrainingSettings, read_plan
from rim_lens.patterns.training_rows import tokenized
from rim_lens.patterns.training_runs import Run, runs_of
from rim_lens.results import Manifest, Result, load_result

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Holding:
    """Which neurons are held, and how hard shifts are penalized on which requests (0: not)."""

    neurons: Rows | None = None
    penalty: float = 0.0
    direction: Float[np.ndarray, " d_model"] | None = None
    direction_penalty: float = 0.0
    requests: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FinetuneRun(Result):
    """A finished series.

    `table`: trl's log, one row per logged step of each run; `minutes`: what each run took, without loading
    the model; `folder` is what `Checkpoints` reads.
    """

    figure: ClassVar = "arms:loss_curves"

    table: pd.DataFrame
    folder: str
    n_rows: dict[str, int]
    minutes: dict[str, float]
    n_held: int

    def caption(self) -> str:
        """Runs, examples, minutes and held neurons."""
        runs = ", ".join(f"{name} ({n} examples, {self.minutes[name]:.1f} min)" for name, n in self.n_rows.items())
        return f"{self.folder}: {runs}; {self.n_held} neurons held still"


def finetune(
    model: str,
    data: str | Path | TrainingPlan,
    out: str | Path,
    *,
    settings: TrainingSettings | None = None,
    adapter: str | Path | None = None,
    freeze_neurons: str | Path | Rows | None = None,
    penalize_shift: float = 0.0,
    direction: Any = None,
    penalize_direction: float = 0.0,
    safety_prompts: str = "harmful",
    device: str | None = None,
    tags: ThinkTags | None = None,
    template_variables: Mapping[str, object] | None = None,
) -> FinetuneRun:
    """Fine-tune a model on CoT data, one run per arm and seed, and write the series to `out`.

    Args:
        model: hub id, folder, or the bundled model's name: the base of the series.
        data: a data file (one arm), a `.toml` with settings and arms, or a plan made otherwise.
        out: a folder for the series: a new one, or one of the same plan, which is then finished.
        settings: settings of the runs where `data` is not a `.toml`.
        adapter: LoRA adapter that training starts from.
        freeze_neurons: neurons whose weights stand still: a file, the folder of saved safety neurons, or rows.
        penalize_shift: λ of the penalty on their activation's shift on `safety_prompts`; 0 leaves it out.
        direction: a `RefusalDirection`, the folder of a saved one, or a vector [d_model].
        penalize_direction: γ of the penalty on the stream's shift along it on `safety_prompts`; 0 leaves it out.
        safety_prompts: a prompt set's name or file; requests only, nothing is learned from them.
        device: CUDA where there is one by default.
        tags: as for `load_model`.
        template_variables: as for `load_model`.

    Raises:
        RimLensError: trl is missing, a file or setting is wrong, rows without CoT or with answers that disagree with
            it, a folder that holds something else, neurons that the model has not.

    """
    plan = data if isinstance(data, TrainingPlan) else read_plan(data, settings, adapter)
    holding = holding_of(freeze_neurons, penalize_shift, direction, penalize_direction, safety_prompts)
    if (holding.neurons is not None or plan.settings.merge_start) and plan.adapter and not plan.settings.full:
        plain_lora_config(plan.adapter)
    require_trl()
    chat_format = load_chat_format(model, tags, template_variables)
    runs = runs_of(plan, chat_format)
    rows = {run.name: tokenized(chat_format, run.rows) for run in runs}
    held = [] if holding.neurons is None else holding.neurons.tolist()
    notes = {
        "held_neurons": held,
        "penalize_shift": penalize_shift,
        "penalize_direction": penalize_direction,
        "direction": "" if holding.direction is None else sha256(holding.direction.tobytes()).hexdigest(),
        "think_tags": list(astuple(chat_format.tags)),
        "template_variables": dict(template_variables or {}),
    }
    series = begin_series(Path(out), model, plan, runs, notes)
    for run in runs:
        if not series.is_whole(run):
            train_run(model, run, rows[run.name], series, chat_format, holding, chosen_device(device))
    return FinetuneRun(
        manifest=Manifest.collect(seed=plan.settings.seeds[0], base=model),
        table=series.log_table(runs),
        folder=str(out),
        n_rows={name: len(arm_rows) for name, arm_rows in rows.items()},
        minutes={run.name: series.minutes(run) for run in runs},
        n_held=len(held),
    )


def holding_of(
    neurons: str | Path | Rows | None, penalty: float, direction: Any, direction_penalty: float, prompts: str
) -> Holding:
    """What is held, read.

    Raises:
        RimLensError: a penalty below 0 or without what it penalizes, a direction without a penalty, unreadable files.
    """
    for value, what, argument, there in (
        (penalty, "neurons", "freeze_neurons", neurons is not None),
        (direction_penalty, "a direction", "direction", direction is not None),
    ):
        if value < 0:
            raise RimLensError(f"The penalty on the shift of {what} must not be negative, got {value}.")
        if value and not there:
            raise RimLensError(f"A penalty on the shift needs {what}; give it with {argument}.")
    if direction is not None and not direction_penalty:
        raise RimLensError("A direction does nothing without a penalty; give one with penalize_direction.")
    from rim_lens.capture.neuron_sets import neuron_rows
    from rim_lens.data.prompts import load_prompts

    rows = None
    if neurons is not None:
        rows = read_neurons(neurons) if isinstance(neurons, str | Path) else neuron_rows(neurons)
    vector = None if direction is None else read_direction(direction)
    requests = tuple(load_prompts(prompts).texts) if penalty or direction_penalty else ()
    return Holding(rows, penalty, vector, direction_penalty, requests)


def read_direction(direction: Any) -> Float[np.ndarray, " d_model"]:
    """The vector of a direction, or of the saved one in a folder."""
    one = load_result(Path(direction).expanduser()) if isinstance(direction, str | Path) else direction
    vector = np.asarray(getattr(one, "vector", one))
    if vector.dtype.kind != "f" or vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
        raise RimLensError(f"{direction!s:.60} is not a direction: a RefusalDirection or a finite vector other than 0.")
    return vector


def train_run(
    base: str,
    run: Run,
    rows: Sequence[dict[str, list[int]]],
    series: SavedSeries,
    chat_format: ChatFormat,
    holding: Holding,
    device: str,
) -> None:
    """One arm with one seed from the common start."""
    from transformers import set_seed

    from rim_lens.patterns.assistant_trainer import trained

    plan = series.plan
    set_seed(run.seed)
    location, _ = resolve(base)
    hf, tokenizer = read_weights(location, chosen_dtype(None, device, None), None, False, None)
    check_lengths(rows, hf, run)
    places = [] if holding.neurons is None else held_places(hf, holding.neurons)
    model, before = start_of(hf.to(device), plan, bool(places) or plan.settings.merge_start)
    prefix = "" if plan.settings.full else PEFT_PREFIX
    slices = hold(model, places, prefix)
    penalties = penalties_of(model, places, holding, chat_format, plan.settings.batch_size, prefix)

    def save(step: int) -> None:
        folder = series.folder_of(run, step)
        if plan.settings.full:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        else:
            save_adapter(model, folder, base, before)
        series.add(run, step)

    started = time.perf_counter()
    log = trained(
        model,
        tokenizer,
        rows,
        plan.settings,
        run.seed,
        run.save_at,
        str(series.folder),
        slices=slices,
        penalties=penalties,
        save=save,
    )
    series.finish(run, log, (time.perf_counter() - started) / 60)


def start_of(hf: Any, plan: TrainingPlan, merged: bool) -> tuple[Any, Path | None]:
    """The model to train, and the adapter that was merged into its base and must be joined again when saving."""
    if plan.settings.full:
        hf = merge_adapter(hf, plan.adapter) if plan.adapter else hf
        return hf.requires_grad_(True), None
    from peft import LoraConfig, PeftModel, get_peft_model

    if plan.adapter and not merged:
        return PeftModel.from_pretrained(hf, plan.adapter, is_trainable=True, autocast_adapter_dtype=True), None
    if plan.adapter:
        hf = merge_adapter(hf, plan.adapter)
    config = LoraConfig(
        r=plan.settings.rank, lora_alpha=plan.settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(hf, config), plan.adapter


def penalties_of(
    model: Any,
    places: Sequence[Held],
    holding: Holding,
    chat_format: ChatFormat,
    batch_size: int,
    prefix: str,
) -> list[ShiftPenalty]:
    """The penalties, with what the values are before training."""
    device = next(model.parameters()).device
    batched = partial(make_batch, pad_id=chat_format.tokenizer.pad_token_id or 0, device=device)
    chats = [chat_format.render(request) for request in holding.requests]

    def made() -> Iterator[ShiftPenalty]:
        if holding.penalty:
            yield NeuronShift(places, prefix, model, chats, batched, holding.penalty, batch_size)
        if holding.direction is not None:
            width = model.config.get_text_config().hidden_size
            if len(holding.direction) != width:
                raise RimLensError(f"The direction has {len(holding.direction)} numbers, the model's stream {width}.")
            vector = torch.from_numpy(holding.direction).float()
            yield DirectionShift(vector, model, chats, batched, holding.direction_penalty, batch_size)

    model.eval()
    penalties = list(made())
    model.train()
    return penalties


def check_lengths(rows: Sequence[dict[str, list[int]]], hf: Any, run: Run) -> None:
    """Raise where a row does not fit the model's context."""
    longest = getattr(hf.config.get_text_config(), "max_position_embeddings", None)
    for number, row in enumerate(rows, start=1):
        if longest and len(row["input_ids"]) > longest:
            raise RimLensError(
                f"Row {number} of {run.source} has {len(row['input_ids'])} tokens, more than the context of "
                f"{longest}; shorten it."
            )


def require_trl() -> None:
    """Raise where the extra is not installed."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise RimLensError("Fine-tuning needs trl; install it with: pip install 'rim-lens[train]'.") from error
