"""Think tags of model families whose chat templates do not show them whole: data, one row per family.

A row applies where all its `marks` stand in the template's text, or one of its `names` in the tokenizer's name.
Sources: the families' published chat templates and model cards.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from rim_lens.chat.tags import ThinkTags


class Family(NamedTuple):
    """How a family writes a thought, and how it is switched off.

    `off`: "span" for an empty span of its own tags, "bare" where the answer follows the generation prompt at once.
    `system_off`, `system_on`: lines for the system prompt that switch thinking, "" where there are none.
    """

    name: str
    marks: tuple[str, ...]
    open: str
    close: str
    off: Literal["span", "bare"] = "span"
    system_off: str = ""
    system_on: str = ""
    names: tuple[str, ...] = ()
    empty_close: str = ""  # the closing tag of an empty span, where it differs

    @property
    def tags(self) -> ThinkTags:
        """The row's tags."""
        return ThinkTags(self.open, self.close)


FAMILIES = (
    Family(
        "harmony (gpt-oss)",
        ("<|channel|>final<|message|>",),
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    Family(
        "Gemma 4",
        ("<|turn>", "<|channel>", "<channel|>"),
        "<|channel>thought\n",
        "\n<channel|>",
        empty_close="<channel|>",
    ),
    Family("Mistral (Magistral, Ministral)", ("[INST]", "[THINK]"), "[THINK]", "[/THINK]"),
    Family("Cohere (Command)", ("<|START_THINKING|>",), "<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    Family("Seed-OSS", ("<seed:think>",), "<seed:think>", "</seed:think>"),
    Family("Kimi-VL-Thinking", ("◁think▷",), "◁think▷", "◁/think▷"),
    Family("EXAONE Deep", ("[|assistant|]", "<thought>"), "<thought>\n", "\n</thought>\n\n"),
    Family("Granite 3.3", ("<|start_of_role|>", "<think>", "<response>"), "<think>", "</think><response>", "bare"),
    Family(
        "Granite 3.2",
        ("Here is my thought process:", "Here is my response:"),
        "Here is my thought process:\n\n",
        "\n\nHere is my response:\n\n",
        "bare",
    ),
    Family(
        "Apriel",
        ("[BEGIN FINAL RESPONSE]",),
        "Here are my reasoning steps:\n",
        "\n[BEGIN FINAL RESPONSE]\n",
    ),
    Family(
        "OpenThinker",
        ("<|begin_of_thought|>", "<|begin_of_solution|>"),
        "<|begin_of_thought|>\n\n",
        "\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n",
    ),
    Family("Hunyuan", ("<think>", "<answer>"), "<think>\n", "\n</think>\n<answer>\n"),
    Family("Nemotron Nano 2", ("<SPECIAL_11>",), "<think>\n", "</think>\n\n", "span", "/no_think", "/think"),
    Family(
        "Llama-Nemotron 1.5", ("<|start_header_id|>", "/no_think"), "<think>\n", "\n</think>\n\n", "span", "/no_think"
    ),
    Family(
        "Llama-Nemotron",
        (),
        "<think>\n",
        "\n</think>\n\n",
        "span",
        "detailed thinking off",
        "detailed thinking on",
        ("llama-3.1-nemotron", "llama-3_1-nemotron", "llama-3_3-nemotron"),
    ),
    Family("Phi-4-reasoning", ("<|im_sep|>", "<think>"), "<think>\n", "\n</think>\n\n"),
    Family("Phi-4-mini-reasoning", (), "<think>\n", "\n</think>\n\n", names=("phi-4-mini-reasoning",)),
)


def family_of(template: str, tokenizer_name: str) -> Family | None:
    """The first row whose marks all stand in the template's text, or one of whose names stands in the tokenizer's."""
    name = tokenizer_name.lower()
    for family in FAMILIES:
        matches = bool(family.marks) and all(mark in template for mark in family.marks)
        if matches or any(part in name for part in family.names):
            return family
    return None
