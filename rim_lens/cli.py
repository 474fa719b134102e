"""rim-lens: the shell's way to the same functions.

Every command only calls the API; heavy imports wait until one runs.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rim_lens import __version__
from rim_lens.cli_look import LOOKING
from rim_lens.cli_options import (
    EngineOption,
    ModelArgument,
    ModelsArgument,
    RanksOption,
    TagsOption,
    VariablesOption,
)
from rim_lens.errors import RimLensError

app = typer.Typer(
    help="Why does a model that refuses harmful requests stop refusing when it reasons?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Measure reasoning-induced misalignment: rates, heads, neurons, checkpoints."""
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.command(short_help="Measure everything in order and write one report.")
def audit(
    models: ModelsArgument,
    checkpoints: Annotated[
        str | None, typer.Option(help="Series of checkpoints or adapters: a folder, or a series file in it.")
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(
            help="Train the series first: worked maths problems (a set or file), or a .toml with arms (extra: train)."
        ),
    ] = None,
    harmful: Annotated[str, typer.Option(help="Harmful requests: a set's name or a file.")] = "harmful",
    harmless: Annotated[str, typer.Option(help="Harmless requests: a set's name or a file.")] = "harmless",
    maths: Annotated[str, typer.Option(help="Maths problems: a set's name or a file.")] = "maths",
    out: Annotated[Path, typer.Option(help="Folder for the report, tables and results.")] = Path("runs/audit"),
    n: Annotated[int, typer.Option(help="Prompts per set, at least 32.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what decides no claim; the page names it.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    n_controls: Annotated[int, typer.Option(help="Random control sets per causal test.")] = 100,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; CUDA where there is one by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    engine: EngineOption = "transformers",
    tensor_parallel: RanksOption = 1,
    patterns: Annotated[bool, typer.Option(help="Effort-minimizing reasoning: what each pattern costs.")] = True,
    heads: Annotated[bool, typer.Option(help="Inference time: attention, ablation, probe.")] = True,
    neurons: Annotated[bool, typer.Option(help="Training time: neurons, activation shift, RAS.")] = True,
    temperature: Annotated[
        float | None, typer.Option(help="Of sampled answers, 0 for greedy; the model's own where it thinks natively.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of probability that answers are sampled from.")] = None,
    samples: Annotated[int, typer.Option(help="Answers per prompt.")] = 1,
    cot_budget: Annotated[str, typer.Option(help="Longest own CoT in tokens; auto: what fits the context.")] = "96",
    think_tags: TagsOption = None,
    template_variable: VariablesOption = None,
) -> None:
    """Measure everything in order and write one report; run it again to go on after an interruption.

    Several models are audited one after the other, each into a folder of its own under --out, and compared.
    """
    from rim_lens.audit.plan import AuditPlan
    from rim_lens.audit.run import run_audits
    from rim_lens.audit.show import print_audits
    from rim_lens.behavior.limits import read_budget
    from rim_lens.processes import is_writer

    asked = AuditPlan(
        model=models[0],
        checkpoints=checkpoints,
        finetune=finetune,
        harmful=harmful,
        harmless=harmless,
        maths=maths,
        n=n,
        quick=quick,
        seed=seed,
        n_controls=n_controls,
        device=device,
        dtype=dtype,
        engine=engine,
        tensor_parallel=tensor_parallel,
        patterns=patterns,
        heads=heads,
        neurons=neurons,
        temperature=temperature,
        top_p=top_p,
        samples=samples,
        cot_budget=read_budget(cot_budget),
        think_tags=think_tags,
        template_variables=tuple(template_variable or ()),
    )
    try:
        audits = run_audits(asked, models, out, processes=2)
        if is_writer():
            print_audits(audits, out)
    except KeyboardInterrupt:
        typer.echo("rim-lens: interrupted; run the same command again to go on where it stopped.", err=True)
        raise typer.Exit(130) from None


@app.command(short_help="Show an audit's page with its model behind it.")
def serve(
    run: Annotated[Path, typer.Argument(help="Folder of an audit, finished or running.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; any free one by default.")] = 0,
) -> None:
    """Show an audit's page with its model behind it, on this machine alone; the page of a running audit grows.

    Ablate heads, ask again, read new prompts.
    """
    from rim_lens.serve.run import serve_run

    try:
        serve_run(run, port=port, announce=lambda url: typer.echo(f"Open {url} (Ctrl+C ends it)"))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command("chat-segments", short_help="Show in colour how a prompt is cut into segments.")
def chat_segments(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="A user message.")],
    thinking: Annotated[str, typer.Option(help="off, on or prefilled.")] = "off",
    cot: Annotated[str | None, typer.Option(help="The CoT to prefill.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    think_tags: TagsOption = None,
    template_variable: VariablesOption = None,
) -> None:
    """Show in colour how a prompt is cut into segments, and where the decision position is."""
    from rich.console import Console

    from rim_lens.chat.segments_view import segments_text
    from rim_lens.chat.tags import read_tags
    from rim_lens.chat.template import read_variables
    from rim_lens.model.load import load_chat_format

    chat_format = load_chat_format(model, read_tags(think_tags), read_variables(template_variable or ()))
    chat = chat_format.render(prompt, thinking=thinking, cot=cot, system=system)  # type: ignore[arg-type]
    Console().print(segments_text(chat))
    Console().print(f"\nthink tags: {chat_format.tags_from}", *chat_format.notes, sep="\n", markup=False)


@app.command(short_help="Say what holds on a model, computed a second time.")
def check(
    model: ModelArgument,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; CUDA where there is one by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    think_tags: TagsOption = None,
    template_variable: VariablesOption = None,
) -> None:
    """Say what holds on a model, by computing it a second time; exit status 1 where something does not."""
    from rim_lens.chat.tags import read_tags
    from rim_lens.chat.template import read_variables
    from rim_lens.check.model_check import check_model
    from rim_lens.check.show import print_check
    from rim_lens.model.load import load_model

    variables = read_variables(template_variable or ())
    loaded = load_model(model, device=device, dtype=dtype, tags=read_tags(think_tags), template_variables=variables)
    found = check_model(loaded)
    print_check(found, loaded.name)
    if not found.holds:
        raise typer.Exit(1)


@app.command(short_help="Train on CoT data, as a series for audit.")
def finetune(
    model: ModelArgument,
    data: Annotated[
        str, typer.Argument(help="Rows with request, cot, response (JSONL, CSV, Parquet), or a .toml with arms.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the series of checkpoints.")],
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter that training starts from.")] = None,
    save_at: Annotated[str, typer.Option(help="Steps to save, as 9,18,36; the last ends the run.")] = "",
    full: Annotated[bool, typer.Option(help="Train all weights in place of a LoRA adapter.")] = False,
    rank: Annotated[int, typer.Option(help="Rank of the adapter.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 2e-4,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 4,
    epochs: Annotated[float, typer.Option(help="Passes over the data, where no steps are given.")] = 1.0,
    seeds: Annotated[str, typer.Option(help="Seeds of weights and order, as 1,2,3; one run each.")] = "0",
    freeze_neurons: Annotated[
        str | None,
        typer.Option(help="Neurons whose weights stand still: JSON of [layer, unit], or saved safety neurons."),
    ] = None,
    penalize_shift: Annotated[float, typer.Option(help="Weight of the penalty on their activation's shift.")] = 0.0,
    direction: Annotated[str | None, typer.Option(help="Folder of a saved refusal direction.")] = None,
    penalize_direction: Annotated[float, typer.Option(help="Weight of the penalty on the shift along it.")] = 0.0,
    safety_prompts: Annotated[str, typer.Option(help="Requests that the shift is measured on.")] = "harmful",
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; CUDA where there is one by default.")] = None,
    think_tags: TagsOption = None,
    template_variable: VariablesOption = None,
) -> None:
    """Train on CoT data and save steps as a series for `audit --checkpoints` (extra: train)."""
    from rim_lens.chat.tags import read_tags
    from rim_lens.chat.template import read_variables
    from rim_lens.patterns.finetune import finetune as run
    from rim_lens.patterns.training_plan import TrainingSettings, read_numbers

    settings = TrainingSettings(
        full=full,
        rank=rank,
        learning_rate=learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        seeds=read_numbers(seeds, "seeds"),
        save_at=read_numbers(save_at, "steps to save"),
    )
    done = run(
        model,
        data,
        out,
        settings=None if data.endswith(".toml") else settings,
        adapter=adapter,
        freeze_neurons=freeze_neurons,
        penalize_shift=penalize_shift,
        direction=direction,
        penalize_direction=penalize_direction,
        safety_prompts=safety_prompts,
        device=device,
        tags=read_tags(think_tags),
        template_variables=read_variables(template_variable or ()),
    )
    typer.echo(done.caption())


for command, short in LOOKING.items():
    app.command(short_help=short)(command)


def main() -> None:
    """Run the command line; what the user can mend becomes one sentence and exit status 2."""
    try:
        app()
    except RimLensError as error:
        typer.echo(f"rim-lens: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
