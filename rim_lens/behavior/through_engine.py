"""Answers that an engine writes: the dialogue of one row, by the very rules that decoding here follows.

1. A row that thinks asks for its CoT, up to its budget or the close tag; then for its answer.
2. Each token of a reply is taken by the row (`behavior.row`). Where it forces the close tag, what the engine wrote
   beyond is dropped, and the next question goes on after the tag.
3. Heads and neurons that are changed now go along as edits, at the positions where decoding here would change them:
   from the decision position on there is no change while the CoT is written, and then one from the close tag on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rim_lens.behavior.limits import Limits, is_thinking
from rim_lens.behavior.row import Row, Written
from rim_lens.behavior.sampling import Sampling, row_seed
from rim_lens.chat.chat import Chat
from rim_lens.engine.dialogue import Ask, Dialogue
from rim_lens.engine.edit import Edit
from rim_lens.errors import RimLensError
from rim_lens.intervene.unit_edit import UnitEdit
from rim_lens.model.lens_model import LensModel

FORCED = -1  # in the place of a token that nobody chose
TO_THE_END = -1


@dataclass(frozen=True)
class Changed:
    """A change of one row while it is written, and where: "all", "decision" or "from_decision"."""

    edit: Edit
    where: str


def written_through(
    model: LensModel,
    chats: Sequence[Chat],
    numbers: Sequence[int],
    limits: Limits,
    sampling: Sampling,
    seed: int | Sequence[int],
    count: Callable[[int], None],
) -> Iterator[tuple[int, Written]]:
    """What the model's engine writes after the chats of these numbers, each with its number as it ends.

    Raises:
        RimLensError: an active tap does what cannot be done while an engine writes.
    """
    assert model.engine is not None
    changes = changes_of(model, chats)
    dialogues = [dialogue(model, chats[i], i, limits, sampling, seed, count, changes[i]) for i in numbers]
    for place, written in model.engine.run(dialogues):
        yield numbers[place], written


def changes_of(model: LensModel, chats: Sequence[Chat]) -> list[list[Changed]]:
    """The changes of every row by the active taps; rows with equal ones share them."""
    rows: list[list[Changed]] = [[] for _ in chats]
    for tap in model.active_taps:
        if not isinstance(tap, UnitEdit):
            what = getattr(tap, "what", type(tap).__name__)
            raise RimLensError(
                f"{what} cannot be made while vLLM writes: load {model.name} with load_model(name) for generation "
                "inside this block."
            )
        if tap.where not in ("all", "decision", "from_decision"):
            raise RimLensError(
                f"{tap.what} at positions {tap.where!r} cannot be made while vLLM writes: use 'all', 'decision' or "
                "'from_decision', or load the model with load_model(name)."
            )
        if tap.n_given not in (1, len(chats)):
            raise RimLensError(f"{tap.what} was given for {tap.n_given} rows, but there are {len(chats)} answers.")
        known: dict[Any, Changed] = {}
        for row, chat in enumerate(chats):
            key = tap.edit_key(row, chat)
            if key not in known:
                known[key] = Changed(tap.as_edit(row, chat), tap.where)
            rows[row].append(known[key])
    return rows


def dialogue(
    model: LensModel,
    chat: Chat,
    number: int,
    limits: Limits,
    sampling: Sampling,
    seed: int | Sequence[int],
    count: Callable[[int], None],
    changes: Sequence[Changed] = (),
) -> Dialogue[Written]:
    """One row until it is done."""
    chat_format = model.chat_format
    row = Row(number, chat_format, limits, chat.text, thinking=is_thinking(chat))
    before, part, decision = tuple(chat.token_ids.tolist()), 0, chat.decision_position
    while not row.done:
        after = (*row.cot_ids, *row.close_ids, *row.response_ids)
        room = limits.cot_budget - len(row.cot_ids) if row.thinking else limits.max_new_tokens - len(row.response_ids)
        draw = row_seed(sampling, seed, number, (part,)) if sampling.temperature else None
        prompt = len(before) + len(row.cot_ids) + len(row.close_ids) if row.cut is not None else decision + 1
        reply = yield Ask(
            ids=before + after,
            text=chat.text + chat_format.decode(after),
            max_tokens=room,
            ends=chat_format.eos_ids,
            stop=chat_format.tags.close_mark if row.thinking else "",
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=0 if draw is None else int(draw.generate_state(1)[0]),
            edits=tuple(place for one in changes for place in placed(one, chat, row.thinking, decision, prompt)),
        )
        count(len(reply.ids))
        thinking = row.thinking
        closed_at = take(row, (*reply.ids, *chat_format.eos_ids[:1]) if reply.ended else reply.ids, bool(changes))
        if thinking and not row.thinking:
            decision = len(before) + closed_at
        part += 1
    return row.finished()


def placed(change: Changed, chat: Chat, thinking: bool, decision: int, prompt: int) -> Iterator[tuple[Edit, int, int]]:
    """A change with its positions, as `intervene.selection.selected` has them in decoding here.

    `decision` is the first position that counts as a decision position, `prompt` the number of tokens before the
    answer. Of a chat that thinks, the last token that was rendered is one too.
    """
    if change.where == "all":
        yield change.edit, 0, TO_THE_END
        return
    if is_thinking(chat):
        yield change.edit, chat.decision_position, chat.decision_position + 1
    if not thinking:
        yield change.edit, decision, TO_THE_END if change.where == "from_decision" else prompt


def take(row: Row, ids: Sequence[int], halts: bool) -> int:
    """Give a row the tokens of a reply, up to the first that it does not want; with `halts` none behind its CoT.

    How many tokens it had written before the first one that counts as a decision position: the token that completes a
    close tag of the model's own, or the first of a forced one.
    """
    before = 0
    for token in ids:
        thinking = row.thinking
        row.accept(token)
        if thinking and not row.thinking:
            before = len(row.cot_ids) + (len(row.close_ids) - 1 if row.closed else 0)
        if row.done or row.forced or (halts and thinking and not row.thinking):
            break
    while row.forced:
        row.accept(FORCED)
    return before
