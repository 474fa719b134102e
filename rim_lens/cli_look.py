"""Commands that look before an audit and after several: what there is, what an audit will do, runs side by side."""

from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from rim_lens.cli_options import EngineOption, ModelArgument, RanksOption, TagsOption

WIDTH = 79  # of a paragraph in a terminal


def doctor() -> None:
    """Check the installation: versions, extras, device, browser, cache, hub; exit status 1 if something is missing."""
    from rim_lens.check import doctor as checks
    from rim_lens.table import print_rows

    lines = checks.doctor()
    rows = [(line.part, f"{line.found}: {line.advice}" if line.advice else line.found) for line in lines]
    print_rows(rows, marked=[bool(line.advice) for line in lines])
    if any(line.bad for line in lines):
        raise typer.Exit(1)


def plan(
    model: ModelArgument,
    checkpoints: Annotated[str | None, typer.Option(help="Folder with a series of checkpoints or adapters.")] = None,
    harmful: Annotated[str, typer.Option(help="Harmful requests: a set's name or a file.")] = "harmful",
    harmless: Annotated[str, typer.Option(help="Harmless requests: a set's name or a file.")] = "harmless",
    maths: Annotated[str, typer.Option(help="Maths problems: a set's name or a file.")] = "maths",
    n: Annotated[int, typer.Option(help="Prompts per set, at least 32.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what decides no claim.")] = False,
    n_controls: Annotated[int, typer.Option(help="Random control sets per causal test.")] = 100,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; CUDA where there is one by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    engine: EngineOption = "transformers",
    tensor_parallel: RanksOption = 1,
    cot_budget: Annotated[str, typer.Option(help="Longest own CoT in tokens; auto: what fits the context.")] = "96",
    think_tags: TagsOption = None,
) -> None:
    """Say what an audit of a model will do, from its config and tokenizer alone: no weight is read."""
    from rim_lens.audit.plan import AuditPlan
    from rim_lens.audit.preview import preview
    from rim_lens.behavior.limits import read_budget
    from rim_lens.table import print_rows

    asked = AuditPlan(
        model=model,
        checkpoints=checkpoints,
        harmful=harmful,
        harmless=harmless,
        maths=maths,
        n=n,
        quick=quick,
        n_controls=n_controls,
        device=device,
        dtype=dtype,
        engine=engine,
        tensor_parallel=tensor_parallel,
        cot_budget=read_budget(cot_budget),
        think_tags=think_tags,
    )
    lines = preview(asked)
    print_rows([(line.part, line.words) for line in lines], marked=[line.warning for line in lines])
    typer.echo(f"rim-lens audit {model} starts it.")


def organism(
    name: Annotated[str, typer.Argument(help="A model with a known mechanism.")] = "inference-known",
    n: Annotated[int, typer.Option(help="Requests, all about food.")] = 32,
    lineage: Annotated[int | None, typer.Option(help="Which training of training-known or training-null.")] = None,
    arm: Annotated[str | None, typer.Option(help="Of training-known: entangled (the default) or separate.")] = None,
    dose: Annotated[int | None, typer.Option(help="Of training-known: how much maths, 1 to 4 (default 3).")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; CUDA where there is one by default.")] = None,
) -> None:
    """Try the verdicts on a model whose mechanism is known: what was trained into it should be supported."""
    from rim_lens.audit.known import audit_known
    from rim_lens.organisms import load

    if name == "training-known":
        arm, dose = arm or "entangled", dose or 3
    typer.echo("\n".join(audit_known(load(name, lineage=lineage, arm=arm, dose=dose, device=device), n=n).lines()))


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished audits.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page and the table as CSV, Markdown and LaTeX.")
    ] = None,
) -> None:
    """Put finished audits side by side: rates, verdicts, RAS; what was asked otherwise is marked as not comparable."""
    from rim_lens.audit.compare import compare_runs
    from rim_lens.audit.show import print_comparison

    print_comparison(compare_runs(runs), out)


def models() -> None:
    """List what can be named as a model, families in which every part was checked, and what is in the cache."""
    from rim_lens.model.cached import cached_models
    from rim_lens.model.load import SOURCES
    from rim_lens.model.names import WHOLE_FAMILIES
    from rim_lens.table import print_rows

    print_rows([(source, what) for source, _, what in SOURCES])
    typer.echo("\nFor example:\n" + "\n".join(f"    {example}" for _, example, _ in SOURCES))
    families = f"Every part was checked in the families {WHOLE_FAMILIES}. `rim-lens check MODEL` checks any other one."
    typer.echo("\n" + fill(families, WIDTH, break_on_hyphens=False))
    typer.echo("\nIn the cache:")
    print_rows([(one.name, f"{one.size / 1e9:.1f} GB, {one.kind}") for one in cached_models()] or [("nothing", "")])


def prompts(
    name: Annotated[str | None, typer.Argument(help="A set to show, by name or path; none lists all sets.")] = None,
    n: Annotated[int, typer.Option(help="How many prompts to show.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
) -> None:
    """List the prompt sets, or show a few prompts of one."""
    from rim_lens.data.prompts import list_prompt_sets, load_prompts
    from rim_lens.table import print_rows

    if name is None:
        print_rows(
            [
                (
                    one.name,
                    f"{one.kind}, {one.size} prompts",
                    f"{one.licence}; {one.where}{'; gated: needs an account there' if one.gated else ''}",
                )
                for one in list_prompt_sets()
            ]
        )
        return
    whole = load_prompts(name, seed=seed)
    shown = load_prompts(name, n=min(n, len(whole)), seed=seed)
    typer.echo(f"{name}: {len(shown)} of {len(whole)}")
    print_rows([(prompt.id, prompt.category or "", prompt.text) for prompt in shown])


LOOKING: dict[Callable[..., None], str] = {  # in the order of `rim-lens --help`, each with its line there
    plan: "Say what an audit will do, before any weight is read.",
    doctor: "Check the installation and say what to do.",
    models: "List what can be named as a model, and the cache.",
    prompts: "List the prompt sets, or show a few prompts of one.",
    organism: "Try the verdicts on a model with a known mechanism.",
    compare: "Put finished audits side by side.",
}
