"""run_audit: stages in order, then tables, results.json and the report."""

import json
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rim_lens.audit.files import write_json, write_text
from rim_lens.audit.findings import findings_of
from rim_lens.audit.finetuning import with_series
from rim_lens.audit.lanes import SECOND_LANE, await_stages, end_with_parent, second_lane, worth_two
from rim_lens.audit.plan import AuditPlan, claim_folder, release_folder
from rim_lens.audit.size import size_line
from rim_lens.audit.stage import DONE, Context, Stage
from rim_lens.audit.stages import FIRST, STAGES
from rim_lens.claims.verdicts import Verdicts, line, verdicts
from rim_lens.errors import RimLensError
from rim_lens.processes import is_writer, once
from rim_lens.progress import silence
from rim_lens.report.finding import Finding
from rim_lens.report.page import report_page
from rim_lens.results import Manifest, Result, load_result


@dataclass(frozen=True)
class Audit:
    """A finished audit.

    Where it lies, its results by name, the verdict on each claim, its findings and the seconds each stage took.
    """

    folder: Path
    results: dict[str, Result]
    verdicts: Verdicts
    findings: list[Finding]
    seconds: dict[str, float]

    @property
    def model(self) -> str:
        """What was measured: the model with its adapter or checkpoint."""
        return next(iter(self.results.values())).manifest.model.get("name", "this model")

    @property
    def report(self) -> Path:
        """The one-file HTML report."""
        return self.folder / "report.html"


def run_audit(plan: AuditPlan, out: Path, *, processes: int = 1) -> Audit:
    """Measure every stage that `out` does not hold yet, then write results.json, tables and the report.

    Args:
        plan: what to measure.
        out: the audit's folder.
        processes: 2 runs stages that do not need each other side by side, where the machine has the cores for it.

    Raises:
        RimLensError: `out` holds another run, or an input is wrong; finished stages stay for the next run.
    """
    plan = with_series(plan, out)
    once(lambda: claim_folder(plan, out))
    context = Context(plan)
    try:
        is_new = not places_of(out)
        run_stages(plan, context, out, only=FIRST)
        if is_writer() and is_new:
            print(size_line(plan), file=sys.stderr, flush=True)
        if processes > 1 and worth_two(plan):
            with second_lane(run_lane, plan, out):
                run_stages(plan, context, out, without=SECOND_LANE)
        run_stages(plan, context, out)
    except BaseException:
        if is_writer():
            release_folder(out)
        raise
    finally:
        context.close_writer()
    decided = verdicts(context.results, plan.margins)
    audit = Audit(out, context.results, decided, findings_of(context.results), context.seconds)
    once(lambda: write_outputs(audit, plan))
    return audit


def run_audits(plan: AuditPlan, models: Sequence[str], out: Path, *, processes: int = 1) -> list[Audit]:
    """The same plan for several models, one after the other, each in a folder of its own under `out`.

    Raises:
        RimLensError: as `run_audit`; several models with one series or fine-tuning, or two that end in the same name.
    """
    if len(models) == 1:
        return [run_audit(replace(plan, model=models[0]), out, processes=processes)]
    names = [Path(model).name for model in models]
    if plan.checkpoints is not None or plan.finetune is not None:
        raise RimLensError("A series belongs to one model; audit the models one by one, then use rim-lens compare.")
    if len(set(names)) < len(names):
        raise RimLensError(f"Two of the models end in the same name ({', '.join(names)}); audit them one by one.")
    pairs = zip(models, names, strict=True)
    return [run_audit(replace(plan, model=model), out / name, processes=processes) for model, name in pairs]


def run_stages(
    plan: AuditPlan, context: Context, out: Path, *, only: Sequence[str] | None = None, without: Sequence[str] = ()
) -> None:
    """Every stage that the plan wants, in order, or some of them; those that `out` holds are loaded.

    A stage that was measured is one line on stderr, with its time; the page is written anew after each.
    """
    stages = [stage for stage in STAGES if stage.wanted(plan)]
    for i, stage in enumerate(stages, start=1):
        if stage.name in without or (only is not None and stage.name not in only) or stage.name in context.seconds:
            continue
        for need in (one for one in stages if one.name in stage.needs and one.name not in context.seconds):
            await_stages(out / "stages", [need.name])
            need.run(context, out / "stages")
        if stage.run(context, out / "stages") and is_writer():
            title = f"stage {i} of {len(stages)}: {stage.title}"
            print(f"{title:<68} {context.seconds[stage.name]:>5.0f} s", file=sys.stderr, flush=True)
            for words in new_verdicts(write_growing(plan, stages, out), context.claims):
                print(words, file=sys.stderr, flush=True)


def new_verdicts(decided: Verdicts | None, printed: set[str]) -> list[str]:
    """The lines of claims that have evidence now and were not printed yet; `printed` then holds them.

    Bounds are corrected over the claims that are measured so far, so that later ones may widen them.
    """
    if decided is None:
        return []
    measured = decided.table[decided.table["effect"].notna()]
    new = measured[~measured["claim"].isin(printed)]
    printed |= set(new["claim"])
    return ["so far:", *(line(row) for row in new.to_dict("records"))] if len(new) else []


def write_growing(plan: AuditPlan, stages: Sequence[Stage], out: Path) -> Verdicts | None:
    """The page of what is there so far, from both lanes, and its verdicts.

    None once all is there, since the whole page follows.
    """
    places = {name: out / place for name, place in places_of(out).items()}
    unfinished = [stage.title for stage in stages if not (out / "stages" / stage.name).is_dir()]
    if not unfinished or not places:
        return None
    results = {name: load_result(place) for name, place in places.items()}
    decided = verdicts(results, plan.margins)
    page = report_page(
        results,
        findings_of(results),
        next(iter(results.values())).manifest,
        asdict(plan),
        verdicts=decided.table,
        places=places_of(out),
        unfinished=unfinished,
        left_out=plan.extent.left_out,
    )
    write_tables(out, results)
    write_text(out / "report.html", page)
    return decided


def write_tables(out: Path, results: Mapping[str, Result]) -> None:
    """One CSV per result; the page links to them."""
    for name, result in results.items():
        write_text(out / "tables" / f"{name}.csv", result.to_dataframe().to_csv(index=False))


def places_of(out: Path) -> dict[str, str]:
    """The folder of every result of the finished stages, relative to the audit's."""
    return {
        name: f"stages/{record.parent.name}/{name}"
        for record in sorted(out.glob(f"stages/[!.]*/{DONE}"))
        for name in json.loads(record.read_text())["results"]
    }


def run_lane(plan: AuditPlan, out: Path, threads: int) -> None:
    """The second process: its stages in order, quietly where one fails."""
    import torch

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    silence()  # the first process has the terminal's bars
    try:
        run_stages(plan, Context(plan), out, only=SECOND_LANE)
    except (RimLensError, KeyboardInterrupt):
        raise SystemExit(1) from None


def write_outputs(audit: Audit, plan: AuditPlan) -> None:
    """results.json (verdicts, findings, plan, manifest), one CSV a table, and report.html."""
    first = next(iter(audit.results.values())).manifest
    manifest: Manifest = first.with_seconds(**audit.seconds)
    document = {
        "verdicts": json.loads(audit.verdicts.table.to_json(orient="records")),
        "findings": [asdict(finding) for finding in audit.findings],
        "plan": asdict(plan),
        "manifest": asdict(manifest) | {"plan_sha256": plan.digest},
        "results": sorted(audit.results),
    }
    write_json(audit.folder / "results.json", document)
    write_tables(audit.folder, audit.results | {"verdicts": audit.verdicts})
    table, places = audit.verdicts.table, places_of(audit.folder)
    page = report_page(
        audit.results,
        audit.findings,
        manifest,
        asdict(plan),
        verdicts=table,
        places=places,
        left_out=plan.extent.left_out,
    )
    write_text(audit.report, page)
