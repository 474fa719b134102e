"""serve_run: an audit's report with its model behind it, until it is interrupted."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rim_lens.audit.plan import PLAN_FILE, AuditPlan
from rim_lens.audit.stage import Context
from rim_lens.errors import RimLensError
from rim_lens.serve.answers import PageModel
from rim_lens.serve.http import PageServer

# What is shown before the first stage of a running audit is done; it asks again every five seconds.
WAITING = b"""<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<title>rim_lens: no stage is done yet</title><p>No stage of this audit is done yet. The page appears after the first."""


def serve_run(folder: Path, *, port: int = 0, announce: Callable[[str], None] = print) -> None:
    """Serve an audit's page on 127.0.0.1 until interrupted; the page of a running audit grows as its stages end.

    Args:
        folder: the audit's folder, as `rim-lens audit --out` made it.
        port: to listen on; any free one by default.
        announce: called with the page's address when it can be opened.

    Raises:
        RimLensError: the folder holds no audit, its model cannot be loaded, or the port is taken.
    """
    plan = plan_of(folder)
    model = PageModel(Context(plan).model, max_new_tokens=plan.max_new_tokens, cot_budget=plan.cot_budget)
    try:
        server = PageServer(partial(page_of, folder), model, port, folder / "tables")
    except OSError as error:
        raise RimLensError(f"Port {port} cannot be used ({error.strerror}); choose another --port.") from error
    with server:
        announce(server.url)
        server.serve_forever()


def page_of(folder: Path) -> bytes:
    """The report as it is now, or a page that waits for it."""
    path = folder / "report.html"
    return path.read_bytes() if path.is_file() else WAITING


def at_home(plan: AuditPlan, folder: Path) -> AuditPlan:
    """The plan with its relative paths as they were when the audit ran: from here, or from a folder above the run's."""
    moved: dict[str, Any] = {}
    for name in ("model", "checkpoints"):
        path = getattr(plan, name)
        if path is None or Path(path).expanduser().exists():
            continue
        there = [parent / path for parent in folder.resolve().parents if (parent / path).exists()]
        if there:
            moved[name] = str(there[0])
    return replace(plan, **moved)


def plan_of(folder: Path) -> AuditPlan:
    """The plan that an audit's folder was made for."""
    path = folder / PLAN_FILE
    if not path.is_file():
        raise RimLensError(f"{folder} holds no audit; run rim-lens audit with --out {folder} first.")
    try:
        fields = json.loads(path.read_text())
        plan: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return at_home(AuditPlan(**plan), folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RimLensError(
            f"{path} is not a plan of this version ({error}); run rim-lens audit again into a new folder."
        ) from error
