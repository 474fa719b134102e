"""Writes docs/chat-formats.md: what becomes of each chat template that trl ships, and of the families beside it."""

from __future__ import annotations

import re
from collections import Counter
from html import escape
from pathlib import Path

import trl
from named_templates import NAMED
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rim_lens.chat.families import FAMILIES
from rim_lens.chat.format import ChatFormat
from rim_lens.errors import RimLensError

TEMPLATES = Path(__file__).parents[1] / "docs" / "chat-formats.md"
SHIPPED = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}
SPECIAL = re.compile(r"<\|[^<>|\s]{1,40}\|>|<\|?\w{1,30}\|?>|</\w{1,30}>|\[/?[A-Z_]{2,30}\]|<｜[^｜]{1,30}｜>")
INTRO = """# Chat formats

*Written by `tests/template_table.py`; a test checks that it is current.*

A prompt is rendered by the model's own chat template. The think tags come from the first of these that applies:

1. `tags=ThinkTags(open, close)`, where you give it (*given*);
2. the template: a tag in its generation prompt, how it writes an earlier thought, or a pair in its text (*template*);
3. a row of the table of families below (*known family*);
4. plain `<think>` (*default*), only where a template has nothing of its own. The model was then not taught these tags.

`ChatFormat.tags_from` holds which, and `rim-lens chat-segments` prints it. A think tag whose other half is missing is
an error. So is a system prompt that a template leaves out. A date that a template writes is held at 26 July 2024, so
that a render can be repeated. A second BOS token is taken out. Both stand in `ChatFormat.notes`. Other variables of a
template go through `load_model(..., template_variables={"reasoning_effort": "high"})`, or
`--template-variable reasoning_effort=high` in the shell.

"""


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and of the template's special tokens."""
    special = list(dict.fromkeys(["<bos>", "<eos>", *SPECIAL.findall(template)]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate([*special, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=special,
        chat_template=template,
    )


def cell(text: str) -> str:
    """A text as code in a table."""
    return f"<code>{escape(text).replace('|', '&#124;')}</code>".replace("\n", "↵")


def outcome(format_: ChatFormat, **options: str) -> str:
    """ "yes", or the sentence with which the render is refused."""
    try:
        format_.render("REQ", **options)  # type: ignore[arg-type]
    except RimLensError as error:
        return str(error)
    return "yes"


def row(name: str, format_: ChatFormat) -> tuple[list[str], str]:
    """Cells of one template, and its kind for the counts."""
    modes = {
        "off": outcome(format_),
        "on": outcome(format_, thinking="on"),
        "prefilled": outcome(format_, thinking="prefilled", cot="COT"),
        "system": outcome(format_, system="SYS"),
    }
    rendered = all(modes[mode] == "yes" for mode in ("off", "on", "prefilled"))
    reasons = dict.fromkeys(f"{mode}: {text}" for mode, text in modes.items() if text != "yes")
    notes = [note for note in format_.notes if "plain <think>" not in note and "family" not in note]
    kind = (
        "renders" if rendered and modes["system"] == "yes" else "renders, no system prompt" if rendered else "refused"
    )
    cells = [name, kind, cell(format_.tags.open), cell(format_.tags.close), format_.tags_from]
    return [
        *cells,
        f"`{format_.switch}`" if format_.switch else "",
        " ".join([*reasons, *notes]).replace("|", "&#124;"),
    ], kind


def page() -> str:
    """The whole page."""
    rows, kinds = [], Counter[str]()
    for name, path in SHIPPED.items():
        cells, kind = row(name, ChatFormat(tokenizer_with(path.read_text(encoding="utf-8"))))
        rows.append(cells)
        kinds[kind] += 1
    counts = "; ".join(f"{kind}: {number}" for kind, number in sorted(kinds.items()))
    sources = Counter(cells[4] for cells in rows)
    text = INTRO + f"## The {len(rows)} templates of trl\n\nIn all three modes: {counts}. "
    text += "Tags from: " + ", ".join(f"{source} {number}" for source, number in sorted(sources.items())) + ".\n\n"
    text += table(["template", "result", "open", "close", "tags from", "switch", "notes"], rows)
    text += (
        "\n## Families\n\n`off`: *span* writes an empty think span, *bare* lets the answer follow the header at "
        "once.\n\n"
    )
    families = [
        [
            one.name,
            ", ".join(map(cell, one.marks)) or f"name holds {', '.join(map(cell, one.names))}",
            cell(one.open),
            cell(one.close),
            f"{one.off}{f', system prompt {cell(one.system_off)}' if one.system_off else ''}",
        ]
        for one in FAMILIES
    ]
    text += table(["family", "recognised by", "open", "close", "off"], families)
    text += (
        "\n## Thinking models that trl does not ship\n\nRendered in the tests with templates after the published "
        "ones.\n\n"
    )
    named = []
    for name, one in NAMED.items():
        tokenizer = tokenizer_with(one.template)
        tokenizer.name_or_path = one.name or "made"
        named.append(row(name, ChatFormat(tokenizer))[0])
    return text + table(["model", "result", "open", "close", "tags from", "switch", "notes"], named)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    TEMPLATES.write_text(page(), encoding="utf-8")
