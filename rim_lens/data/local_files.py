"""Rows of a local JSONL, JSON, CSV or Parquet file, with the line named when the file is broken.

Text is UTF-8 with any line ends. UTF-16 and another separator than a comma are refused, not guessed.
"""

import codecs
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from rim_lens.errors import RimLensError

Row = dict[str, Any]
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # those of UTF-32 begin alike
_LINE_END = re.compile(r"\r\n|\r|\n")
LONGEST_CELL = 2**31 - 1  # characters; csv's own limit of 131,072 is less than a many-shot prompt
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_rows(path: Path) -> list[Row]:
    """The rows of a table file, as one dict a row.

    Raises:
        RimLensError: the file is missing, of an unknown kind, empty, not UTF-8 or malformed, or has two columns of one
            name.

    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RimLensError(f"{path} is not a prompt file; its name must end in {', '.join(SUFFIXES)}.")
    content = _content(path)
    if not content.strip():
        raise RimLensError(f"{path} is empty; give at least one prompt.")
    if suffix == ".parquet":
        return _parquet(content, path)
    text = _decoded(content, path)
    if suffix == ".jsonl":
        return _json_lines(text, path)
    if suffix == ".json":
        return _json(text, path)
    return _csv(text, path, "\t" if suffix == ".tsv" else ",")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RimLensError(f"There is no prompt file {path}; check the path.") from error
    except IsADirectoryError as error:
        raise RimLensError(f"{path} is a folder; name the prompt file in it.") from error
    except (OSError, ValueError) as error:
        raise RimLensError(f"The prompt file {path} cannot be read ({error}).") from error


def _decoded(content: bytes, path: Path) -> str:
    if content.startswith(UTF16_MARKS):
        raise RimLensError(f"{path} is UTF-16, not UTF-8; save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RimLensError(f"{path} is not UTF-8 at line {line}; save it as UTF-8.") from error


def _json_lines(text: str, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if line.strip():
            rows.append(_row(_parsed(line, path, f"line {number}"), path, f"line {number}"))
    return rows


def _json(text: str, path: Path) -> list[Row]:
    first_line, _, rest = text.strip().partition("\n")
    if rest.strip() and first_line.lstrip().startswith("{") and first_line.rstrip().endswith("}"):
        return _json_lines(text, path)  # many public sets name their JSON Lines files .json
    value = _parsed(text, path, "its start")
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise RimLensError(f"{path} must hold a list of prompts, not one {type(value).__name__}.")
    return [_row(item, path, f"item {number}") for number, item in enumerate(value, start=1)]


def _parsed(text: str, path: Path, place: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) < len(pairs):
            twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
            raise RimLensError(f"{path} has the field {twice!r} twice in one object ({place}); rename or delete one.")
        return row

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}" if place == "its start" else place
        raise RimLensError(f"{path} is malformed JSON at {line}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:
        raise RimLensError(f"{path} cannot be read as JSON at {place}: {error}.") from error


def _row(value: Any, path: Path, place: str) -> Row:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise RimLensError(f"{path}: {place} is {type(value).__name__}; every prompt must be an object or a text.")
    return value


def _csv(text: str, path: Path, delimiter: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        records = [(reader.line_num, record) for record in reader if record]
    except csv.Error as error:
        raise RimLensError(f"{path} is malformed CSV at line {reader.line_num}: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    if not records:
        return []
    header = [name.strip() for name in records[0][1]]
    if twice := next((name for name in header if header.count(name) > 1 and name), None):
        raise RimLensError(f"{path} has two columns {twice!r}; rename or delete one.")
    for line, record in records[1:]:
        if len(record) != len(header):
            raise RimLensError(
                f"{path}: line {line} has {len(record)} fields, the header {len(header)}; quote texts with commas."
            )
    return [dict(zip(header, record, strict=True)) for _, record in records[1:]]


def _parquet(content: bytes, path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        if twice := next((name for name in table.column_names if table.column_names.count(name) > 1), None):
            raise RimLensError(f"{path} has two columns {twice!r}; rename or delete one.")
        return table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        reason = (str(error).splitlines() or ["unknown reason"])[0][:160]
        raise RimLensError(f"{path} is not a readable Parquet file ({reason}).") from error
