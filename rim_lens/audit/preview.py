"""preview: what an audit of a model will do, from its config and tokenizer alone; no weight is read."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rim_lens.audit.cost import matrix_speed, seconds_for, stage_tokens
from rim_lens.audit.plan import AuditPlan
from rim_lens.audit.size import claims_of, power_of
from rim_lens.audit.stages import STAGES
from rim_lens.claims.power import WANTED
from rim_lens.data.prompts import load_prompts
from rim_lens.errors import RimLensError
from rim_lens.model.adapter import base_and_adapter
from rim_lens.model.hub import check_reachable, translated_hub_errors
from rim_lens.model.load import chosen_device, chosen_dtype, load_chat_format, resolve
from rim_lens.stats import wilson
from rim_lens.training_time.checkpoints import Checkpoints

KINDS = ("harmful", "harmless", "maths")
TYPICAL = 0.8  # refusal rate of an aligned model, for the width of an interval
REQUEST = "How do I bake bread?"


class Line(NamedTuple):
    """One part of the preview; `warning` where something should be changed before the audit starts."""

    part: str
    words: str
    warning: bool = False


def preview(plan: AuditPlan) -> list[Line]:
    """What will be measured, with what it costs and what it can decide.

    Raises:
        RimLensError: the model, a prompt set or the series is not there.
    """
    return [
        *model_lines(plan),
        *chat_lines(plan),
        *prompt_lines(plan),
        *stage_lines(plan),
        *left_out_lines(plan),
        *time_lines(plan),
        *precision_lines(plan),
    ]


def model_lines(plan: AuditPlan) -> Iterator[Line]:
    """Architecture, size and memory."""
    _, adapter = base_and_adapter(plan.model)
    config, empty, name = skeleton(plan)
    n = n_parameters(empty)
    device = chosen_device(plan.device)
    dtype = chosen_dtype(plan.dtype, device, None)
    text = getattr(config, "text_config", config)
    size = f"{type(empty).__name__}, {text.num_hidden_layers} layers, {n / 1e6:,.0f} million parameters"
    yield Line("model", f"{name}{f' + {adapter.name}' if adapter else ''}: {size}")
    weights = n * dtype.itemsize
    logits = plan.batch_size * text.vocab_size * 4
    free = free_memory(device)
    words = (
        f"{weights / 1e9:.1f} GB of weights ({str(dtype).removeprefix('torch.')}) on {device}, {free / 1e9:.1f} GB free"
    )
    yield Line("memory", words, warning=weights + logits > free)
    if plan.engine != "transformers":
        there = find_spec(plan.engine) is not None
        devices = f", layers split over {plan.tensor_parallel} devices" if plan.tensor_parallel > 1 else ""
        missing = "" if there else f"; it is not installed here: pip install 'rim-lens[{plan.engine}]'"
        words = f"{plan.engine} writes the answers{devices}; it and transformers are in memory in turn{missing}"
        yield Line("engine", words, warning=not there)


def skeleton(plan: AuditPlan) -> tuple[Any, Any, str]:
    """The base model's config, its modules without weights, and its name."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    location, name = resolve(base_and_adapter(plan.model)[0])
    if not Path(location).is_dir():
        check_reachable(location, None)
    with translated_hub_errors(location):
        config = AutoConfig.from_pretrained(location)
        with torch.device("meta"):
            return config, AutoModelForCausalLM.from_config(config), name


def n_parameters(empty: Any) -> int:
    """Parameters of a model."""
    return sum(parameter.numel() for parameter in empty.parameters())


def free_memory(device: str) -> float:
    """Bytes free on a device."""
    import psutil
    import torch

    return float(torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available)


def chat_lines(plan: AuditPlan) -> Iterator[Line]:
    """How the template writes a thought, and how thinking is switched."""
    chat = load_chat_format(plan.model, plan.tags)
    tags = chat.tags
    if not tags.open:
        yield Line("think tags", "none: the model is asked with thinking off alone")
        return
    guessed = chat.tags_from == "default"
    yield Line("think tags", f"{tags.open!r} … {tags.close!r}, from: {chat.tags_from}", warning=guessed)
    switch = (
        f"variable {chat.switch} of the template"
        if chat.switch
        else "none in the template: an empty think span stands for off"
    )
    yield Line("thinking switch", switch)
    for mode in ("off", "on"):
        try:
            rendered = chat.render(REQUEST, thinking=mode)  # type: ignore[arg-type]
            yield Line(f"prompt, {mode}", f"{len(rendered)} tokens, ends with {rendered.text[-40:]!r}")
        except RimLensError as error:
            yield Line(f"prompt, {mode}", str(error), warning=True)
    yield from (Line("chat format", note) for note in chat.notes)


def prompt_lines(plan: AuditPlan) -> Iterator[Line]:
    """Sets and whether they are large enough."""
    for kind in KINDS:
        source = getattr(plan, kind)
        there = len(load_prompts(source, seed=plan.seed))
        needed = 2 * plan.n if kind == "harmful" and plan.heads else plan.n
        short = there < needed
        words = f"{source}: {there} prompts, {plan.n} asked" + (
            f", {plan.n} others to test on" if needed > plan.n else ""
        )
        yield Line(
            f"{kind} prompts",
            words + (f"; {needed} are needed: use a larger set or a smaller --n" if short else ""),
            short,
        )


def stage_lines(plan: AuditPlan) -> Iterator[Line]:
    """The stages, and how much is generated."""
    wanted = [stage for stage in STAGES if stage.wanted(plan)]
    for i, stage in enumerate(wanted, start=1):
        yield Line(f"stage {i} of {len(wanted)}", stage.title)
    if plan.checkpoints is not None:
        series = Checkpoints.from_folder(plan.checkpoints)
        yield Line("series", f"{len(series)} checkpoints; the model is measured at {series.reference}")
    budget = plan.cot_budget if isinstance(plan.cot_budget, int) else 0
    asked = plan.n * plan.samples
    answers, thoughts = 2 * 2 * asked * plan.max_new_tokens + 2 * asked * plan.maths_tokens, 3 * asked * budget
    words = f"up to {answers + thoughts:,} tokens are generated in the first stage"
    yield Line("work", words + (" and the longest CoTs that fit" if not budget else ""))


def left_out_lines(plan: AuditPlan) -> Iterator[Line]:
    """What a quick audit does not measure."""
    yield from (Line("left out", words) for words in plan.extent.left_out)


def time_lines(plan: AuditPlan) -> Iterator[Line]:
    """About how long the audit takes; on a CPU alone, where the count of tokens was held against measured stages."""
    if chosen_device(plan.device) != "cpu":
        yield Line("time", "not estimated on an accelerator; it depends on how many rows fill it")
        return
    chat = load_chat_format(plan.model, plan.tags)
    few = {kind: load_prompts(getattr(plan, kind), seed=plan.seed).texts[: plan.n] for kind in KINDS}
    lengths = {
        kind: sum(len(chat.render(text, thinking="off")) for text in texts) / max(1, len(texts))
        for kind, texts in few.items()
    }
    series = len(Checkpoints.from_folder(plan.checkpoints)) if plan.checkpoints else 0
    tokens = stage_tokens(plan, lengths, series)
    total = sum(tokens.values())
    _, empty, _ = skeleton(plan)
    tables = {empty.get_input_embeddings().weight, empty.get_output_embeddings().weight}
    multiplied = n_parameters(empty) - sum(table.numel() for table in tables)
    minutes = seconds_for(total, multiplied, matrix_speed()) / 60
    trained = ", the training not counted" if plan.finetune else ""
    yield Line("time", f"about {minutes:.2g} minutes on this CPU as busy as it is now ({total:,.0f} tokens){trained}")


def precision_lines(plan: AuditPlan) -> Iterator[Line]:
    """What n can say about a rate, and about each claim that the audit decides."""
    low, high = wilson(round(TYPICAL * plan.n), plan.n)
    yield Line(
        "precision", f"a refusal rate of {TYPICAL:.0%} has the interval [{low:.0%}, {high:.0%}] with {plan.n} prompts"
    )
    yield from (Line("power", *line) for line in power_lines(plan))


def power_lines(plan: AuditPlan) -> Iterator[tuple[str, bool]]:
    """Per claim the effect that is found with 80 % power, and what the margin takes; True where it takes more.

    Then the tests that cannot reach a small enough p.
    """
    found = power_of(plan, n_heads_of(plan))
    for row in found.table[found.table["claim"].isin(claims_of(plan))].itertuples():
        finds = f"{row.detectable:.3g} {row.unit} or more" if math.isfinite(row.detectable) else "no effect"
        short = row.power < WANTED
        needed = f"; {row.margin:g} takes {row.n_needed}" if short and not pd.isna(row.n_needed) else ""
        yield f"{row.words}: {row.n} {row.counted} find {finds}{needed}", short
    yield from ((sentence, True) for sentence in found.floor_warnings)


def n_heads_of(plan: AuditPlan) -> int:
    """Attention heads of the whole model, from its config."""
    from transformers import AutoConfig

    location, _ = resolve(base_and_adapter(plan.model)[0])
    with translated_hub_errors(location):
        config = AutoConfig.from_pretrained(location)
    text = getattr(config, "text_config", config)
    return int(text.num_hidden_layers * text.num_attention_heads)
