"""Fetching public prompt sets: through `datasets` from the hub, or as the file that the authors publish.

Whatever goes wrong ends within seconds in one sentence that names the set, the reason and what works instead.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from rim_lens.data import set_cache
from rim_lens.data.local_files import read_rows
from rim_lens.data.public_sets import PublicSet
from rim_lens.data.schemas import PromptSet, prompts_from_rows
from rim_lens.errors import RimLensError

Result = TypeVar("Result")
ANSWER_WITHIN_S = 6.0  # how long a host may take for its first answer


def load_public(entry: PublicSet) -> PromptSet:
    """Fetch a public set and map its columns; a set fetched once comes from the user's own copy.

    Raises:
        RimLensError: the host does not answer within 6 s, asks for a login, or no longer has the set as described.

    """
    if copy := set_cache.kept(entry.name, entry.source):
        return copy
    fetched = map_rows(entry, download_rows(entry) if entry.is_file else hub_rows(entry))
    set_cache.keep(fetched)
    return fetched


def map_rows(entry: PublicSet, rows: Iterable[dict[str, Any]]) -> PromptSet:
    """Rows in the published schema as a `PromptSet`, with ids that count the kept rows.

    Raises:
        RimLensError: a column of the published schema is absent, or no row is left.

    """
    rows = list(rows)
    wanted = [entry.columns.text, entry.columns.category, entry.columns.answer, entry.columns.pair]
    needed = {name for name in (*wanted, entry.only[0] if entry.only else None) if name is not None}
    if rows and (absent := needed - set(rows[0])):
        raise RimLensError(
            f"The prompt set {entry.name} at {entry.where} has no column {sorted(absent)[0]!r} any more (it has "
            f"{', '.join(rows[0])}); {_instead(entry)}."
        )
    selected = [row for row in rows if entry.only is None or row[entry.only[0]] == entry.only[1]]
    prompts = prompts_from_rows(selected, entry.columns, name=entry.name, where=f"The prompt set {entry.name}")
    return PromptSet(entry.name, entry.source, prompts, entry.licence)


def hub_rows(entry: PublicSet) -> list[dict[str, Any]]:
    """Rows of a hub data set, after a check that the hub answers and lets the user in."""
    _check_access(entry)
    return dataset_rows(entry)


def dataset_rows(entry: PublicSet, cache_dir: Path | None = None) -> list[dict[str, Any]]:
    """Rows through `datasets`; `entry.where` may also be a folder laid out like the hub data set.

    A set whose files stand for categories gets the category as the column `split`.
    """
    from datasets import DownloadConfig, load_dataset

    options: dict[str, Any] = {"revision": entry.revision, "download_config": DownloadConfig(max_retries=1)}
    if cache_dir is not None:
        options["cache_dir"] = str(cache_dir)
    try:
        if entry.split_names:
            # these files have no header line: without `names` their first request would be taken for one
            files = {split: f"{split}.csv" for split, _ in entry.split_names}
            parts = load_dataset(entry.where, data_files=files, names=[entry.columns.text], **options)
            return [{**row, "split": category} for split, category in entry.split_names for row in parts[split]]
        return list(load_dataset(entry.where, entry.config, split=entry.split, **options))
    except Exception as error:  # its hub, parser and cache errors share no base class
        raise _failed(entry, f"datasets could not read it: {_reason(error)}") from error


def download_rows(entry: PublicSet) -> list[dict[str, Any]]:
    """Rows of the file that the authors publish."""
    import urllib.request

    timeout = ANSWER_WITHIN_S - 1

    def content() -> bytes:
        with urllib.request.urlopen(entry.where, timeout=timeout) as response:
            return response.read()

    try:
        downloaded = _within(ANSWER_WITHIN_S, content)
    except (OSError, ValueError) as error:
        raise _failed(entry, f"its host did not deliver it: {_reason(error)}") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / entry.where.rsplit("/", 1)[1]
        path.write_bytes(downloaded)
        return read_rows(path)


def _check_access(entry: PublicSet) -> None:
    """Ask the hub once: loading alone would retry a dead connection for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        _within(ANSWER_WITHIN_S, lambda: HfApi().auth_check(entry.where, repo_type="dataset"))
    except GatedRepoError as error:
        raise _failed(entry, "it is gated: accept its terms on its hub page and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise _failed(entry, "the hub does not show it; it may have moved, or need a login") from error
    except Exception as error:  # connection errors come from whichever HTTP library the hub client uses
        gated = ", and it is gated besides" if entry.gated else ""
        raise _failed(entry, f"the hub did not answer ({_reason(error)}){gated}") from error


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """The call's result or exception, or `TimeoutError`; a name lookup that hangs heeds no socket timeout."""
    outcome: list[tuple[Result | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _failed(entry: PublicSet, reason: str) -> RimLensError:
    return RimLensError(
        f"The prompt set {entry.name} ({entry.where}) could not be loaded: {reason}; {_instead(entry)}."
    )


def _instead(entry: PublicSet) -> str:
    return f"the built-in set {entry.kind!r} or the path of a local file works without it"


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
