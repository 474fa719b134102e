"""run_audit: stages in order, then tables, results.json and the report."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rim_lens.audit.files import write_json, write_text
from rim_lens.audit.findings import findings_of
from rim_lens.audit.finetuning import with_series
from rim_lens.audit.lanes import SECOND_LANE, await_stages, end_with_parent, second_lane, worth_two
from rim_lens.audit.plan import AuditPlan, claim_folder, release_folder
from rim_lens.audit.stage import Context
from rim_lens.audit.stages import FIRST, STAGES
from rim_lens.errors import RimLensError
from rim_lens.processes import is_writer, once
from rim_lens.progress import silence
from rim_lens.report.finding import Finding
from rim_lens.report.page import report_page
from rim_lens.results import Manifest, Result


@dataclass(frozen=True)
class Audit:
    """A finished audit: where it lies, its results by name, its findings and the seconds each stage took."""

    folder: Path
    results: dict[str, Result]
    findings: list[Finding]
    seconds: dict[str, float]

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
        run_stages(plan, context, out, only=FIRST)
        if processes > 1 and worth_two(plan):
            with second_lane(run_lane, plan, out):
                run_stages(plan, context, out, without=SECOND_LANE)
        run_stages(plan, context, out)
    except BaseException:
        if is_writer():
            release_folder(out)
        raise
    audit = Audit(out, context.results, findings_of(context.results), context.seconds)
    once(lambda: write_outputs(audit, plan))
    return audit


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
            line = f"stage {i} of {len(stages)}: {stage.title}"
            print(f"{line:<68} {context.seconds[stage.name]:>5.0f} s", file=sys.stderr, flush=True)


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
    """results.json (findings, plan, manifest), one CSV a table, and report.html."""
    first = next(iter(audit.results.values())).manifest
    manifest: Manifest = first.with_seconds(**audit.seconds)
    document = {
        "findings": [asdict(finding) for finding in audit.findings],
        "plan": asdict(plan),
        "manifest": asdict(manifest),
        "results": sorted(audit.results),
    }
    write_json(audit.folder / "results.json", document)
    for name, result in audit.results.items():
        write_text(audit.folder / "tables" / f"{name}.csv", result.to_dataframe().to_csv(index=False))
    write_text(audit.report, report_page(audit.results, audit.findings, manifest, asdict(plan)))
