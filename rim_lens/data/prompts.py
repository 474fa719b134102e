"""Prompt sets by name or path: built-in, local file or public; and the wordings of prefilled CoT.

Built-in sets, written for this package: `harmful` (96 requests in 8 of HEx-PHI's categories; requests only),
`harmless` (their 96 twins with the same opening verb and length, matched by `pair`) and `maths` (64 one- and
two-step problems with answers).
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rim_lens.data.fetch import load_public
from rim_lens.data.local_files import SUFFIXES, Row, read_rows
from rim_lens.data.public_sets import PUBLIC_SETS, Kind
from rim_lens.data.schemas import Prompt, PromptSet, Wording, find_columns, kind_of, listed, prompts_from_rows
from rim_lens.errors import RimLensError

__all__ = [
    "Prompt",
    "PromptSet",
    "Prompts",
    "SetInfo",
    "Wording",
    "as_problems",
    "as_prompt_set",
    "list_prompt_sets",
    "load_prompts",
    "load_wordings",
]

Prompts = str | Path | PromptSet | Iterable[Prompt | str]  # a set's name or file, a set, prompts, or texts

BUILTIN_SETS: dict[str, Kind] = {"harmful": "harmful", "harmless": "harmless", "maths": "maths"}
_HERE = Path(__file__).parent
_OWN_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class SetInfo:
    """One line of the list of prompt sets; `pandas.DataFrame(list_prompt_sets())` makes the table."""

    name: str
    kind: Kind
    where: str
    size: int
    licence: str
    gated: bool


def load_prompts(
    name_or_path: str | Path, n: int | None = None, seed: int = 0, *, column: str | None = None
) -> PromptSet:
    """Load a prompt set: built-in, local or public.

    Args:
        name_or_path: a name from `list_prompt_sets()`, or a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet`
            file. A name wins over a file of the same name; write `./harmful` or a `Path` for the file.
        n: keep a seeded sample of this size, in the set's order. Sets of equal length lose the same rows
            under the same seed, so harmful requests keep their harmless twins.
        seed: of the sample.
        column: of a local file, the column with the requests, when it is not one of the usual names.

    Raises:
        RimLensError: no such set or file, a broken file, a public set out of reach (within 10 s), or `n`
            outside 1 … the size of the set.

    """
    prompts = _whole(name_or_path, column)
    return prompts if n is None else prompts.sample(n, seed)


def as_prompt_set(prompts: Prompts, n: int | None = None, seed: int = 0, *, name: str = "prompts") -> PromptSet:
    """A prompt set from its name or file, from a set, or from `Prompt`s or texts; at most `n` prompts of it.

    Texts become prompts of the set `name`.

    Raises:
        RimLensError: no such set or file, no prompts, or something else among them.

    """
    if isinstance(prompts, str | Path):
        whole = load_prompts(prompts)
    elif isinstance(prompts, PromptSet):
        whole = prompts
    else:
        whole = PromptSet(name, "passed in", _as_prompts(prompts, name))
    if not len(whole):
        raise RimLensError(f"The set {whole.name} holds no prompts; give at least one.")
    return whole if n is None or n >= len(whole) else whole.sample(n, seed)


def as_problems(prompts: Prompts, n: int | None = None, seed: int = 0) -> PromptSet:
    """As `as_prompt_set`, for maths problems: each of them needs an answer.

    Raises:
        RimLensError: also for a problem without an answer.

    """
    problems = as_prompt_set(prompts, n, seed, name="problems")
    lacking = [problem.id for problem in problems if problem.answer is None]
    if lacking:
        raise RimLensError(
            f"{len(lacking)} of {len(problems)} problems of {problems.name} have no answer (first: {lacking[0]}); "
            "maths needs one each, as Prompt(answer=...) or as a column of the file."
        )
    return problems


def list_prompt_sets() -> list[SetInfo]:
    """Every set that `load_prompts` takes by name, the built-in ones first."""
    own = [
        SetInfo(name, kind, "built in", len(read_rows(_builtin_file(name))), _OWN_LICENCE, False)
        for name, kind in BUILTIN_SETS.items()
    ]
    public = [
        SetInfo(entry.name, entry.kind, entry.where, entry.size, entry.licence, entry.gated)
        for entry in PUBLIC_SETS.values()
    ]
    return own + public


def load_wordings(kind: str) -> list[Wording]:
    """The texts of one kind to prefill as CoT: `effort_minimizing`, `careful`, `neutral` or `irrelevant`.

    They have about equal length, so that kinds differ in what they say and not in how much.

    Raises:
        RimLensError: there is no such kind.

    """
    kinds = sorted(path.stem for path in (_HERE / "wordings").glob("*.jsonl"))
    if kind not in kinds:
        raise RimLensError(f"There are no wordings of kind {kind!r}; choose among {', '.join(kinds)}.")
    rows = read_rows(_HERE / "wordings" / f"{kind}.jsonl")
    return [
        Wording(row["text"], kind, row.get("pattern"), f"{kind}-{number:02d}")
        for number, row in enumerate(rows, start=1)
    ]


def _as_prompts(entries: Iterable[Prompt | str], name: str) -> tuple[Prompt, ...]:
    kinds = "a set, its name or file, Prompts or texts"
    prompts = []
    for number, one in enumerate([entries] if isinstance(entries, Prompt) else listed(entries, kinds), start=1):
        if not isinstance(one, Prompt | str):
            raise RimLensError(f"Prompt {number} is {kind_of(one)}; pass {kinds}.")
        prompts.append(one if isinstance(one, Prompt) else Prompt(str(one), None, f"{name}-{number:04d}"))
    return tuple(prompts)


def _whole(name_or_path: str | Path, column: str | None) -> PromptSet:
    name = name_or_path if isinstance(name_or_path, str) else None
    if name in BUILTIN_SETS:
        _refuse_column(name, column)
        return _from_rows(read_rows(_builtin_file(name)), name, "built in", None, _OWN_LICENCE)
    if name in PUBLIC_SETS:
        _refuse_column(name, column)
        return load_public(PUBLIC_SETS[name])
    path = Path(name_or_path)
    if name is not None and path.suffix.lower() not in SUFFIXES and not _exists(path):
        raise _unknown(name)
    return _from_rows(read_rows(path), path.stem, str(path), column, None)


def _from_rows(rows: list[Row], name: str, source: str, column: str | None, licence: str | None) -> PromptSet:
    where = source if licence is None else f"The prompt set {name}"
    if not rows:
        raise RimLensError(f"{where} holds no prompts; give at least one row.")
    columns = find_columns(_keys(rows), where, column)
    return PromptSet(name, source, prompts_from_rows(rows, columns, name=name, where=where), licence)


def _keys(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _builtin_file(name: str) -> Path:
    return _HERE / "builtin" / f"{name}.jsonl"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _refuse_column(name: str, column: str | None) -> None:
    if column is not None:
        raise RimLensError(f"column={column!r} is for local files; the columns of {name} are known.")


def _unknown(name: str) -> RimLensError:
    known = [*BUILTIN_SETS, *PUBLIC_SETS]
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(close)}?" if close else f"the sets are {', '.join(known)}."
    return RimLensError(f"There is no prompt set and no file {name[:200]!r}; {advice}")
