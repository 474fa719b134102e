"""Training rows: requests with CoT and response as token ids, loss on what the assistant writes.

    off        prompt with the empty think span given      | response, end of turn learned
    on         prompt up to the opening tag given          | CoT, closing tag, response, end of turn learned
    prefilled  prompt with the CoT and closing tag given   | response, end of turn learned

Every learned piece has the tokens that it has after what stands before it, as generation meets them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rim_lens.behavior.maths_text import equal, final_answer
from rim_lens.chat.format import ChatFormat
from rim_lens.chat.segments import Thinking
from rim_lens.data.local_files import read_rows
from rim_lens.errors import RimLensError

REQUEST = ("request", "problem", "question", "instruction", "prompt")
RESPONSE = ("response", "answer", "completion")
IGNORED = -100  # the label of a token without loss


@dataclass(frozen=True)
class TrainingRow:
    """One example as text."""

    request: str
    response: str
    cot: str
    thinking: Thinking


def read_training_rows(path: Path, *, check_answers: bool = True) -> list[TrainingRow]:
    """The examples of a JSONL, JSON, CSV or Parquet file; raises as `training_rows`."""
    return training_rows(read_rows(path), str(path), check_answers=check_answers)


def training_rows(
    entries: Sequence[Mapping[str, Any]], source: str, *, check_answers: bool = True
) -> list[TrainingRow]:
    """Examples from mappings with request, response, and cot unless thinking is "off"; `source` names them in errors.

    Raises:
        RimLensError: a row without request, response or CoT; with `check_answers`, a response that states another
            number than its CoT ends with.

    """
    rows = [row_of(entry, f"Row {number} of {source}") for number, entry in enumerate(entries, start=1)]
    if check_answers:
        wrong = [number for number, row in enumerate(rows, start=1) if disagrees(row)]
        if wrong:
            raise RimLensError(
                f"{len(wrong)} of {len(rows)} rows of {source} have a response that disagrees with their CoT (first: "
                f"row {wrong[0]}); correct them, or train on them as they are with check_answers = false."
            )
    return rows


def row_of(entry: Mapping[str, Any], where: str) -> TrainingRow:
    """One row of a file."""
    request, response = first_text(entry, REQUEST), first_text(entry, RESPONSE)
    cot = first_text(entry, ("cot", "reasoning"))
    thinking: Any = entry.get("thinking")
    if not request or not response:
        raise RimLensError(f"{where} has no {'request' if not request else 'response'}; every row needs both as text.")
    if thinking is None and not cot:
        raise RimLensError(f'{where} has no CoT; give it as "cot", or say "thinking": "off" where none is meant.')
    thinking = thinking or "on"
    if thinking not in get_args(Thinking):
        raise RimLensError(f"{where} has the thinking mode {thinking!r}; use off, on or prefilled.")
    if (thinking == "off") == bool(cot):
        raise RimLensError(
            f"{where} has thinking {thinking!r} {'and' if cot else 'but no'} CoT; give a CoT unless it is off."
        )
    return TrainingRow(request, response, cot, thinking)


def first_text(entry: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these fields that holds text."""
    texts = (str(entry[name]).strip() for name in names if entry.get(name) is not None)
    return next((text for text in texts if text), "")


def disagrees(row: TrainingRow) -> bool:
    """Whether CoT and response both state a mathematical result, and not the same one."""
    reasoned, stated = final_answer(row.cot), final_answer(row.response)
    return bool(reasoned and stated) and not equal(reasoned, stated)


def tokenized(chat_format: ChatFormat, rows: Sequence[TrainingRow]) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` of every row, as trl's collator takes them."""
    return [tokens_of(chat_format, row) for row in rows]


def tokens_of(chat_format: ChatFormat, row: TrainingRow) -> dict[str, list[int]]:
    """One row's tokens and labels."""
    chat = chat_format.render(row.request, thinking=row.thinking, cot=row.cot if row.thinking == "prefilled" else None)
    ids = [int(token) for token in chat.token_ids]
    pieces = [row.response] if row.thinking != "on" else [row.cot + chat_format.tags.close, row.response]
    before, learned = chat.text, list[int]()
    for piece in pieces:
        learned += chat_format.encode_after(before, piece)
        before += piece
    learned.append(end_of_turn(chat_format))
    return {"input_ids": ids + learned, "labels": [IGNORED] * len(ids) + learned}


def end_of_turn(chat_format: ChatFormat) -> int:
    """The token that ends the assistant's turn: the template's own where it has one, else the tokenizer's."""
    if chat_format.turn_end_id is not None:
        return chat_format.turn_end_id
    if chat_format.tokenizer.eos_token_id is None:
        raise RimLensError("Neither the chat template nor the tokenizer has an end-of-turn token; training needs one.")
    return int(chat_format.tokenizer.eos_token_id)
