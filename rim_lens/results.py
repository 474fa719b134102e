"""Results: what a measurement returns, with the manifest that says how it came about.

A result is a frozen dataclass. It prints as a sentence and the first rows of its table, shows the table in a notebook,
turns into a DataFrame or LaTeX, plots itself, and is saved as a folder of JSON, Parquet and safetensors with
checksums::

    @dataclass(frozen=True, eq=False)
    class RefusalHeads(Result):
        \"\"\"Effect of every head on refusal.\"\"\"
        figure: ClassVar = "attention:attention_contrast"
        table: pd.DataFrame
        effect: np.ndarray

    heads = RefusalHeads(table, effect, manifest=Manifest.collect(model, [prompts], seed=0))
    heads.save("runs/heads")
    heads = load_result("runs/heads")
"""

from __future__ import annotations

import dataclasses
import html
import importlib
import math
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rim_lens import results_codec, results_store
from rim_lens.errors import RimLensError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_PACKAGES = {
    "rim_lens": "rim-lens",
    "torch": "torch",
    "transformers": "transformers",
    "transformer_lens": "transformer-lens",
    "numpy": "numpy",
}
_SHOWN_ROWS = 10
SHOWN_WIDTH, SHOWN_TEXT = 100, 40  # characters of a printed table's line, and of a cell of it


@dataclass(frozen=True)
class Manifest:
    """How a result came about.

    ``versions`` {package: version}, "absent" for one that is not installed; ``model`` {name, fingerprint, dtype,
    device, think_tags, template_variables}; ``data`` {prompt set: {"sha256", "n"}}; ``command`` the command line;
    ``created`` UTC in ISO 8601; ``seconds`` {stage: wall time}; ``extra`` whatever else decides the numbers (JSON
    values).
    """

    versions: Mapping[str, str]
    model: Mapping[str, str]
    data: Mapping[str, Mapping[str, Any]]
    seed: int | None
    command: str
    created: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def collect(
        cls,
        model: Any = None,
        data: Any = (),
        seed: int | None = None,
        seconds: Mapping[str, float] | None = None,
        **extra: Any,
    ) -> Manifest:
        """The manifest of this process.

        ``model`` needs ``name`` and may have ``fingerprint``, ``dtype``, ``device``, ``think_tags`` and
        ``template_variables``; ``data`` is one prompt set or several, each with ``name``, ``sha256`` and a length.
        ``extra`` is kept as it is.
        """
        return cls(
            versions={"python": platform.python_version()} | {name: _version(pip) for name, pip in _PACKAGES.items()},
            model={} if model is None else _describe_model(model),
            data=_describe_data([data] if hasattr(data, "sha256") else data),
            seed=seed,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=dict(seconds or {}),
            extra=extra,
        )

    def with_seconds(self, **stages: float) -> Manifest:
        """The same manifest with the wall times of more stages, in seconds."""
        return dataclasses.replace(self, seconds={**self.seconds, **stages})


@dataclass(frozen=True, eq=False)
class Result:
    """Base of all results; subclasses are ``@dataclass(frozen=True, eq=False)`` and get ``manifest`` as a keyword.

    Fields may be DataFrames, numpy arrays, torch tensors, numbers, text, None, lists, tuples and dicts of
    these, and dataclasses of these. The field ``table``, where there is one, is the result as a table.
    ``figure`` names the main figure as "module:function" in ``rim_lens.plots``, which is imported when it is drawn.
    """

    figure: ClassVar[str] = ""
    manifest: Manifest = field(kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        results_codec.registered[results_codec.type_name(cls)] = cls
        # The dataclass decorator writes a __repr__ with every field in full unless the class has one of its own.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def to_dataframe(self) -> pd.DataFrame:
        """The result as one table: the field ``table`` unless the class says otherwise."""
        table = getattr(self, "table", None)
        if table is None:
            raise RimLensError(f"A {type(self).__name__} has no table of its own; look at its fields instead.")
        return table

    def to_latex(self, columns: Sequence[str] | None = None) -> str:
        """The result as a LaTeX table (package booktabs), texts escaped, its caption below; all columns by default.

        Raises:
            RimLensError: there is no such column, or no table.
        """
        table = self.to_dataframe()
        if unknown := [name for name in columns or () if name not in table]:
            raise RimLensError(f"There is no column {unknown[0]!r}; there are {', '.join(map(str, table.columns))}.")
        chosen = table if columns is None else table[list(columns)]
        return latex_table(chosen, self.caption())

    def title(self) -> str:
        """Heading in notebooks and reports: the class name in words."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", type(self).__name__).split()
        return " ".join([words[0], *(word if word.isupper() else word.lower() for word in words[1:])])

    def caption(self) -> str:
        """One line under the heading: the first line of the class's docstring."""
        first, *_ = (type(self).__doc__ or "").strip().splitlines() or [""]
        return "" if first.startswith(f"{type(self).__name__}(") else first

    def plot(self, **options: Any) -> go.Figure:
        """The result's main figure; options are those of the function in ``rim_lens.plots`` that ``figure`` names.

        Raises RimLensError where there is no figure for this kind of result.
        """
        if not self.figure:
            raise RimLensError(f"There is no figure of a {type(self).__name__}; use its to_dataframe().")
        module, function = self.figure.split(":")
        return getattr(importlib.import_module(f"rim_lens.plots.{module}"), function)(self, **options)

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes the result as ``folder``, completely or not at all, and returns its path.

        Of several processes one writes; the others wait until it is there, and fail where it could not be written.

        Raises RimLensError for a folder that holds another result (unless ``overwrite``) or other files, for
        a field that cannot be saved, and for a full disk or missing permission.
        """
        encoder = results_codec.Encoder()
        fields = encoder.fields(self)
        document = {
            "type": results_codec.type_name(type(self)),
            "manifest": fields.pop("manifest")["$data"]["fields"],
            "fields": fields,
        }
        from rim_lens.processes import once  # it needs torch, which reading a result does not

        once(lambda: results_store.write_folder(Path(folder), document, encoder, overwrite))
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The result saved in ``folder``; RimLensError when it is of another type, damaged or incomplete."""
        result = load_result(folder)
        if not isinstance(result, cls):
            raise RimLensError(f"{folder} holds a {type(result).__name__}, not a {cls.__name__}; use load_result.")
        return result

    def __str__(self) -> str:
        """What it is and of what, its caption, and as much of its table as a terminal shows."""
        about = [part for part in [self.manifest.model.get("name", ""), *_counts(self.manifest)] if part]
        lines = [f"{self.title()}: {', '.join(about)}" if about else self.title(), self.caption()]
        if self._has_table():
            lines.append(short_table(self.to_dataframe()))
        return "\n".join(line for line in lines if line)

    def _has_table(self) -> bool:
        return getattr(self, "table", None) is not None or type(self).to_dataframe is not Result.to_dataframe

    def __repr__(self) -> str:
        table = getattr(self, "table", None)
        parts = [] if table is None else [f"{len(table)} rows"]
        parts += [self.manifest.model.get("name", ""), *_counts(self.manifest)]
        return f"<{type(self).__name__}: {', '.join(part for part in parts if part)}>"

    def _repr_html_(self) -> str:
        lines = [f"<h4>{html.escape(self.title())}</h4>"]
        about = " · ".join(part for part in [self.manifest.model.get("name", ""), *_counts(self.manifest)] if part)
        lines += [f"<p>{html.escape(text)}</p>" for text in (self.caption(), about) if text]
        if self._has_table():
            table = self.to_dataframe()
            lines.append(
                table.head(_SHOWN_ROWS).to_html(escape=True, border=0, index=False, float_format="{:.3g}".format)
            )
            if len(table) > _SHOWN_ROWS:
                lines.append(f"<p>{_SHOWN_ROWS} of {len(table)} rows</p>")
        return "\n".join(lines)


def load_result(folder: str | Path) -> Result:
    """The result saved in ``folder``, as the class that wrote it.

    Raises RimLensError when the folder holds none, a file of it is missing or does not match its checksum, or
    the class is unknown here.
    """
    try:
        document, decoder = results_store.read_folder(Path(folder))
        cls = results_codec.resolve(document["type"])
        if not issubclass(cls, Result):
            raise RimLensError(f"{folder} was written as {document['type']}, which is not a result.")
        manifest = results_codec.build(Manifest, decoder.decode(document["manifest"]))
        fields = {name: decoder.decode(value) for name, value in document["fields"].items()}
        return results_codec.build(cls, {**fields, "manifest": manifest})
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        # its checksums fit, so nobody's disk did this: the document was not written by `save`
        raise RimLensError(
            f"{folder} is not a result that rim_lens saved ({type(error).__name__}: {str(error)[:120]}); measure again."
        ) from error


def short_table(table: pd.DataFrame, width: int = SHOWN_WIDTH) -> str:
    """The first rows and as many columns from the left as fit `width` characters, and what was left out."""
    first = table.head(_SHOWN_ROWS)
    texts = {name: [shown_cell(value) for value in column] for name, column in first.items()}
    columns_shown, used = list[Any](), 0
    for name, cells in texts.items():
        used += 2 + max(map(len, [str(name), *cells]))
        if columns_shown and used > width:
            break
        columns_shown.append(name)
    lines = first[columns_shown].assign(**{name: texts[name] for name in columns_shown}).to_string(index=False)
    more = [f"{len(first)} of {len(table)} rows"] if len(table) > len(first) else []
    more += (
        [f"more columns: {', '.join(map(str, list(texts)[len(columns_shown) :]))}"]
        if len(columns_shown) < len(texts)
        else []
    )
    return f"{lines}\n({'; '.join(more)})" if more else lines


def shown_cell(value: Any) -> str:
    """A value of a table on one line: three digits of a number, the beginning of a text."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3g}"
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 1]}…"


def latex_table(table: pd.DataFrame, caption: str = "") -> str:
    """A table for LaTeX's booktabs: numbers with three digits, texts escaped."""
    cells = table.map(shown_cell).astype(str)
    style = cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    return style.to_latex(hrules=True, caption=escaped_latex(caption) or None, position_float="centering")


def escaped_latex(text: str) -> str:
    """A text in which LaTeX finds nothing to carry out."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(one) or (f"\\{one}" if one in "&%$#_{}" else one) for one in text)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _describe_model(model: Any) -> dict[str, str]:
    facts = {
        name: getattr(model, name, None)
        for name in ("name", "fingerprint", "dtype", "device", "think_tags", "template_variables")
    }
    engine = getattr(model, "engine", None)
    facts |= {} if engine is None else engine.describe()
    return {name: str(value).removeprefix("torch.") for name, value in facts.items() if value is not None}


def _describe_data(prompt_sets: Iterable[Any]) -> dict[str, dict[str, Any]]:
    described: dict[str, dict[str, Any]] = {}
    for prompts in prompt_sets:
        entry = {"sha256": str(prompts.sha256), "n": len(prompts)}
        name, number = str(prompts.name), 2
        while name in described and described[name] != entry:
            name, number = f"{prompts.name} ({number})", number + 1
        described[name] = entry
    return described


def _counts(manifest: Manifest) -> list[str]:
    return [f"{name} n = {entry['n']}" for name, entry in manifest.data.items()]
