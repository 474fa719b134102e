"""What a prompt set is: prompts with ids, a content hash, and how a table's columns become prompts.

The hash is SHA-256 over the prompts' fields in order, so two runs with the same `sha256` used the same
prompts, whatever file or hub they came from.
"""

import hashlib
import json
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, overload

from rim_lens.errors import RimLensError

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = (
    "instruction",
    "prompt",
    "request",
    "text",
    "goal",
    "question",
    "query",
    "problem",
    "behavior",
    "behaviour",
    "forbidden_prompt",
    "turns",
)
CONTEXT_COLUMNS = (
    "input",
    "context",
    "contextstring",
    "context_string",
)  # what the request is about, in its own column
CATEGORY_COLUMNS = ("category", "semanticcategory", "semantic_category", "type", "subject", "topic")
ANSWER_COLUMNS = ("answer", "final_answer", "gold_answer", "solution")
RATIONALE_COLUMNS = ("rationale", "cot", "reasoning", "solution")
ID_COLUMNS = ("id", "behaviorid", "behavior_id", "question_id", "unique_id")
PAIR_COLUMNS = ("pair", "pair_id")


@dataclass(frozen=True)
class Prompt:
    """One request to a model.

    `category` is the kind of harm (for a built-in harmless twin: of the request that it mirrors) or the topic; `answer`
    is the final answer of a maths problem and `rationale` how it is reached; prompts of two sets with the same `pair`
    are counterparts, for example a harmful request and its harmless twin.
    """

    text: str
    category: str | None
    id: str
    answer: str | None = None
    pair: str | None = None
    rationale: str | None = None


@dataclass(frozen=True)
class Wording:
    """One text to prefill as chain of thought; `pattern` names the kind of effort it saves, if any."""

    text: str
    kind: str
    pattern: str | None
    id: str


@dataclass(frozen=True, repr=False)
class PromptSet(Sequence[Prompt]):
    """Prompts in a fixed order, with where they come from and under which licence.

    Slices are prompt sets again; `sha256` is over the contents (64 hex digits).
    """

    name: str
    source: str
    prompts: tuple[Prompt, ...]
    licence: str | None = None
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        # Sets without rationales keep the hash that they had before prompts knew of them.
        rows = [
            {k: v for k, v in asdict(prompt).items() if k != "rationale" or v is not None} for prompt in self.prompts
        ]
        content = json.dumps(rows, sort_keys=True)
        object.__setattr__(self, "sha256", hashlib.sha256(content.encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> "PromptSet": ...
    def __getitem__(self, index: int | slice) -> "Prompt | PromptSet":
        return self._with(self.prompts[index]) if isinstance(index, slice) else self.prompts[index]

    def __repr__(self) -> str:
        n_categories = len({prompt.category for prompt in self.prompts} - {None})
        kinds = f", {n_categories} categories" if n_categories else ""
        return f"PromptSet({self.name!r}, n={len(self)}{kinds}, sha256={self.sha256[:8]}…)"

    @property
    def texts(self) -> list[str]:
        """The requests, in order."""
        return [prompt.text for prompt in self.prompts]

    def by_category(self) -> dict[str, "PromptSet"]:
        """The set cut by category, in order of first appearance; prompts without a category are left out."""
        cut: dict[str, list[Prompt]] = {}
        for prompt in self.prompts:
            if prompt.category is not None:
                cut.setdefault(prompt.category, []).append(prompt)
        return {category: self._with(tuple(prompts)) for category, prompts in cut.items()}

    def sample(self, n: int, seed: int = 0) -> "PromptSet":
        """A seeded sample of `n` prompts, in the set's order; RimLensError unless 1 <= n <= its size.

        Sets of equal length lose the same rows under the same seed.
        """
        if not 1 <= n <= len(self):
            raise RimLensError(f"n={n} prompts asked of {self.name}, which has {len(self)}; ask for 1 to all.")
        indices = sorted(random.Random(seed).sample(range(len(self)), n))
        return self._with(tuple(self.prompts[i] for i in indices))

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per prompt: `id`, `text`, `category`, `answer`, `pair`, `rationale`."""
        import pandas as pd

        columns = ["id", "text", "category", "answer", "pair", "rationale"]
        return pd.DataFrame([asdict(prompt) for prompt in self.prompts], columns=columns)

    def _with(self, prompts: tuple[Prompt, ...]) -> "PromptSet":
        return PromptSet(self.name, self.source, prompts, self.licence)


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what; `None` where the table has no such column."""

    text: str
    category: str | None = None
    answer: str | None = None
    id: str | None = None
    pair: str | None = None
    rationale: str | None = None
    context: str | None = None  # text that the request is about; it stands after an instruction and before a behavior


def listed(values: Any, kinds: str) -> list[Any]:
    """The items of a list, array or series; `kinds` says in the error what can be passed.

    Raises:
        RimLensError: there are none, or it is a mapping, a set (which has no order), a table or not a list at all.

    """
    if (
        isinstance(values, Mapping | AbstractSet | bytes)
        or hasattr(values, "columns")
        or not isinstance(values, Iterable)
    ):
        raise RimLensError(f"Prompts cannot be {kind_of(values)}; pass {kinds}.")
    items = list(values)
    if not items:
        raise RimLensError("There are no prompts; pass at least one.")
    return items


def kind_of(value: Any) -> str:
    """A wrong value's type, for an error."""
    return "None" if value is None else f"of type {type(value).__name__}"


def find_columns(names: Iterable[str], where: str, text: str | None = None) -> Columns:
    """The columns of a table, by their usual names (upper or lower case).

    Args:
        names: the column names of the table.
        where: the table's name, for the error.
        text: the column that holds the requests, when it has an unusual name.

    Raises:
        RimLensError: `text` is not among the names, or no name is recognised.

    """
    names = [str(name) for name in names]
    by_lower = {name.lower(): name for name in reversed(names)}

    def first(candidates: Sequence[str]) -> str | None:
        return next((by_lower[name] for name in candidates if name in by_lower), None)

    if text is not None and text not in names:
        raise RimLensError(f"{where} has no column {text!r}; it has {_listed(names)}.")
    column = text or first(TEXT_COLUMNS)
    if column is None:
        raise RimLensError(
            f"{where} has no column with requests: found {_listed(names)}, looked for {', '.join(TEXT_COLUMNS)}; "
            "name the right one with column=."
        )
    answer = first(ANSWER_COLUMNS)
    if answer is None and column.lower() == "query":
        answer = by_lower.get("response")  # the schema of MATH-401
    rationale = first([name for name in RATIONALE_COLUMNS if by_lower.get(name) != answer])
    context = first([name for name in CONTEXT_COLUMNS if name != column.lower()])
    return Columns(column, first(CATEGORY_COLUMNS), answer, first(ID_COLUMNS), first(PAIR_COLUMNS), rationale, context)


def prompts_from_rows(
    rows: Iterable[Mapping[str, Any]], columns: Columns, *, name: str, where: str
) -> tuple[Prompt, ...]:
    """Turn table rows into prompts; rows without an id get `name-0001`, `name-0002`, ….

    Repeated prompts are kept and reported with a warning, since every repetition counts in a rate.

    Raises:
        RimLensError: there are no rows, a prompt is blank or no text, or an id occurs twice.

    """
    prompts = [_prompt(row, columns, number, name, where) for number, row in enumerate(rows, start=1)]
    if not prompts:
        raise RimLensError(f"{where} holds no prompts; give at least one row.")
    first_row: dict[str, int] = {}
    for number, prompt in enumerate(prompts, start=1):
        if (earlier := first_row.setdefault(prompt.id, number)) != number:
            raise RimLensError(
                f"{where}: the id {prompt.id[:80]!r} stands in rows {earlier} and {number}; give every prompt "
                "its own id, or none."
            )
    if repeats := len(prompts) - len({prompt.text for prompt in prompts}):
        warnings.warn(f"{where}: {repeats} prompts repeat earlier ones; they are kept and counted.", stacklevel=3)
    return tuple(prompts)


def final_answer(answer: str) -> str:
    r"""The final answer in a worked solution: after the last `####`, or in the last `\boxed{}`, or all of it."""
    if "####" in answer:
        answer = answer.rsplit("####", 1)[1]
        return re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer.strip())
    start = answer.rfind(r"\boxed{")
    if start < 0:
        return answer.strip()
    depth, begin = 0, start + len(r"\boxed")
    for position in range(begin, len(answer)):
        depth += {"{": 1, "}": -1}.get(answer[position], 0)
        if depth == 0:
            return answer[begin + 1 : position].strip()
    return answer.strip()


def worked_out(answer: str) -> str | None:
    """What stands before `####` in a worked answer, without the calculator's `<<…>>`.

    None where there is no such mark.
    """
    if "####" not in answer:
        return None
    return re.sub(r"<<[^>]*>>", "", answer.rsplit("####", 1)[0]).strip() or None


def _prompt(row: Mapping[str, Any], columns: Columns, number: int, name: str, where: str) -> Prompt:
    text = row.get(columns.text)
    if isinstance(text, list | tuple) and len(text) == 1:
        text = text[0]  # one turn
    if text is None or (isinstance(text, str) and not text.strip()) or text != text:
        raise RimLensError(f"{where}: the prompt in row {number} (column {columns.text!r}) is blank.")
    if not isinstance(text, str):
        raise RimLensError(
            f"{where}: the prompt in row {number} (column {columns.text!r}) is {type(text).__name__}, not one text."
        )

    def cell(column: str | None) -> str | None:
        value = None if column is None else row.get(column)
        if isinstance(value, list | tuple):  # OlympiadBench lists its answers
            value = ", ".join(str(one) for one in value)
        missing = value is None or value != value or (isinstance(value, str) and not value.strip())
        return None if missing else str(value).strip()

    answer = cell(columns.answer)
    context = cell(columns.context)
    if context is not None:
        # Alpaca gives the input after the instruction, HarmBench the context before the behavior.
        parts = (text, context) if columns.context and columns.context.lower() == "input" else (context, text)
        text = "\n\n".join(parts)
    prompt = Prompt(
        text=text,
        category=cell(columns.category),
        id=cell(columns.id) or f"{name}-{number:04d}",
        answer=None if answer is None else final_answer(answer),
        pair=cell(columns.pair),
        rationale=cell(columns.rationale) or (None if answer is None else worked_out(answer)),
    )
    try:
        "".join(value for value in asdict(prompt).values() if value).encode()
    except UnicodeEncodeError as error:
        raise RimLensError(f"{where}: row {number} holds half of a surrogate pair, which is not text.") from error
    return prompt


def _listed(names: Sequence[str]) -> str:
    words = ", ".join(repr(name[:40]) for name in names[:12]) or "no columns"
    return words + (f" and {len(names) - 12} more" if len(names) > 12 else "")
