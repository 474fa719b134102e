"""Chat templates of thinking models that trl does not ship, in the tests' own words: only what shapes a chat.

Each is written after what the family's published template does with a system prompt, turns and thinking. `tails` is
what must stand after the request "REQ" with thinking off, on, and prefilled with the CoT "COT".
"""

from __future__ import annotations

from typing import NamedTuple

LOOP = "{% for m in messages %}"
END = "{% endfor %}{% if add_generation_prompt %}"


class Named(NamedTuple):
    template: str
    tails: tuple[str, str, str]
    tags_from: str
    name: str = ""  # of the tokenizer
    in_system: tuple[str, str] = ("", "")  # what the chat must hold besides, off and on


def chatml(prompt: str, before: str = "") -> str:
    return (
        f"{before}{LOOP}{{{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}}}{END}"
        f"{{{{ '<|im_start|>assistant\\n' }}}}{prompt}{{% endif %}}"
    )


def by_role(system: str, user: str, assistant: str, prompt: str, before: str = "") -> str:
    """A template from what stands around the contents (`@`) of each role."""
    texts = {"system": system, "user": user, "assistant": assistant}
    cases = "".join(
        f"{{% {'if' if role == 'system' else 'elif'} m.role == '{role}' %}}{text.replace('@', '{{ m.content }}')}"
        for role, text in texts.items()
    )
    return f"{before}{LOOP}{cases}{{% endif %}}{END}{prompt}{{% endif %}}"


CHATML_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
LLAMA_TURN = "<|start_header_id|>{0}<|end_header_id|>\n\n@<|eot_id|>"
LLAMA = by_role(
    LLAMA_TURN.format("system"),
    LLAMA_TURN.format("user"),
    "<|start_header_id|>assistant<|end_header_id|>\n\n{{ m.content.split('</think>')[-1].lstrip() }}<|eot_id|>",
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
)
LLAMA_TAIL = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
GRANITE = "<|start_of_role|>{0}<|end_of_role|>@<|end_of_text|>\n"
GRANITE_TAIL = "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"
GRANITE_32 = (
    "Respond to every user query in a detailed way. Write down your thoughts after 'Here is my thought process:' and "
    "your response after 'Here is my response:'."
)
GRANITE_33 = "Write your thoughts between <think></think> and your response between <response></response>."


def granite(instruction: str) -> str:
    before = (
        "{% if thinking %}{{ '<|start_of_role|>system<|end_of_role|>"
        + instruction.replace("'", "\\'")
        + "<|end_of_text|>"
        "\n' }}{% endif %}"
    )
    turns = (GRANITE.format(role) for role in ("system", "user", "assistant"))
    return by_role(*turns, "{{ '<|start_of_role|>assistant<|end_of_role|>' }}", before)


EXAONE = ("[|system|]@[|endofturn|]\n", "[|user|]@\n")
COHERE_TURN = "<|START_OF_TURN_TOKEN|><|{0}_TOKEN|>@<|END_OF_TURN_TOKEN|>"
COHERE_TAIL = "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
COHERE = (
    COHERE_TURN.format("SYSTEM"),
    COHERE_TURN.format("USER"),
    COHERE_TURN.format("CHATBOT").replace("@", "<|START_RESPONSE|>@<|END_RESPONSE|>"),
)
COHERE_THOUGHT = "<|START_THINKING|>{0}<|END_THINKING|><|START_RESPONSE|>"
MISTRAL = ("[SYSTEM_PROMPT]@[/SYSTEM_PROMPT]", "[INST]@[/INST]", "@</s>", "")
MISTRAL_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '[SYSTEM_PROMPT]First draft your thinking process. Your thinking "
    "process must follow the template below:[THINK]Your thoughts.[/THINK]Here, provide a response.[/SYSTEM_PROMPT]' "
    "}}{% endif %}"
)
THINK, CLOSED = "<think>\n", "\n</think>\n\n"

NAMED = {
    "QwQ": Named(
        chatml("{{ '<think>\\n' }}"),
        (CHATML_TAIL + THINK + CLOSED, CHATML_TAIL + THINK, CHATML_TAIL + THINK + "COT" + CLOSED),
        "template",
    ),
    "DeepSeek-V3.1": Named(
        by_role(
            "@",
            "<｜User｜>@",
            "<｜Assistant｜></think>@<｜end▁of▁sentence｜>",
            "{{ '<｜Assistant｜>' }}{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}",
            "{% if thinking is not defined %}{% set thinking = false %}{% endif %}",
        ),
        ("<｜Assistant｜></think>", "<｜Assistant｜><think>", "<｜Assistant｜><think>COT</think>"),
        "template",
    ),
    "Magistral": Named(
        by_role(*MISTRAL, MISTRAL_SYSTEM),
        ("[/INST][THINK][/THINK]", "[/INST][THINK]", "[/INST][THINK]COT[/THINK]"),
        "known family",
    ),
    "Ministral 3 Reasoning": Named(
        by_role(
            "[SYSTEM_PROMPT]@[/SYSTEM_PROMPT]",
            "[INST]@[/INST]",
            "{% if m.reasoning_content %}{{ '[THINK]' + m.reasoning_content + '[/THINK]' }}{% endif %}@</s>",
            "",
        ),
        ("[/INST][THINK][/THINK]", "[/INST][THINK]", "[/INST][THINK]COT[/THINK]"),
        "template",
    ),
    "Kimi-K2-Thinking": Named(
        by_role(
            "<|im_system|>system<|im_middle|>@<|im_end|>",
            "<|im_user|>user<|im_middle|>@<|im_end|>",
            "<|im_assistant|>assistant<|im_middle|><think>{{ m.reasoning_content }}</think>@<|im_end|>",
            "<|im_assistant|>assistant<|im_middle|>",
        ),
        tuple(
            "<|im_end|><|im_assistant|>assistant<|im_middle|>" + part
            for part in ("<think></think>", "<think>", "<think>COT</think>")
        ),
        "template",
    ),
    "Granite 3.2": Named(
        granite(GRANITE_32),
        (
            GRANITE_TAIL,
            GRANITE_TAIL + "Here is my thought process:\n\n",
            GRANITE_TAIL + "Here is my thought process:\n\nCOT\n\nHere is my response:\n\n",
        ),
        "known family",
        in_system=("", GRANITE_32),
    ),
    "Granite 3.3": Named(
        granite(GRANITE_33),
        (GRANITE_TAIL, GRANITE_TAIL + "<think>", GRANITE_TAIL + "<think>COT</think><response>"),
        "known family",
        in_system=("", GRANITE_33),
    ),
    "Nemotron Nano 2": Named(
        by_role(
            "<SPECIAL_10>System\n@\n",
            "<SPECIAL_11>User\n@\n",
            "<SPECIAL_11>Assistant\n@\n<SPECIAL_12>\n",
            "{{ '<SPECIAL_11>Assistant\n' }}{% if ns.on %}{{ '<think>\n' }}{% else %}{{ '<think></think>' }}{% endif "
            "%}",
            "{% set ns = namespace(on=true) %}{% for m in messages %}{% if '/no_think' in m.content %}"
            "{% set ns.on = false %}{% elif '/think' in m.content %}{% set ns.on = true %}{% endif %}{% endfor %}",
        ),
        (
            "\n<SPECIAL_11>Assistant\n<think></think>",
            "\n<SPECIAL_11>Assistant\n<think>\n",
            "\n<SPECIAL_11>Assistant\n<think>\nCOT</think>",
        ),
        "template",
        in_system=("/no_think", "/think"),
    ),
    "Llama-Nemotron": Named(
        LLAMA,
        (LLAMA_TAIL + THINK + CLOSED, LLAMA_TAIL + THINK, LLAMA_TAIL + THINK + "COT" + CLOSED),
        "known family",
        "nvidia/Llama-3.1-Nemotron-Nano-8B-v1",
        ("detailed thinking off", "detailed thinking on"),
    ),
    "Phi-4-reasoning": Named(
        "{{ '<|im_start|>system<|im_sep|>Structure your answer in two parts: <think> {Thought section} </think> "
        "{Solution section}<|im_end|>' }}"
        + LOOP
        + "{% if m.role == 'user' %}{{ '<|im_start|>user<|im_sep|>' + m.content + '<|im_end|>' }}{% elif m.role == "
        "'assistant' %}{{ '<|im_start|>assistant<|im_sep|>' + m.content + '<|im_end|>' }}{% endif %}"
        + END
        + "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        tuple(
            "<|im_end|><|im_start|>assistant<|im_sep|>" + part
            for part in (THINK + CLOSED, THINK, THINK + "COT" + CLOSED)
        ),
        "known family",
    ),
    "EXAONE 4": Named(
        by_role(
            *EXAONE,
            "[|assistant|]\n<think>\n\n</think>\n\n@[|endofturn|]\n",
            "{{ '[|assistant|]\n<think>\n' }}{% if not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}",
        ),
        tuple("\n[|assistant|]\n" + part for part in (THINK + CLOSED, THINK, THINK + "COT" + CLOSED)),
        "template",
    ),
    "EXAONE Deep": Named(
        by_role(*EXAONE, "[|assistant|]@[|endofturn|]\n", "{{ '[|assistant|]<thought>\n' }}"),
        tuple(
            "\n[|assistant|]" + part
            for part in ("<thought>\n\n</thought>\n\n", "<thought>\n", "<thought>\nCOT\n</thought>\n\n")
        ),
        "template",
    ),
    "Command A Reasoning": Named(
        by_role(
            *COHERE,
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% if reasoning is defined and not reasoning %}"
            "<|START_THINKING|><|END_THINKING|>{% endif %}",
        ),
        tuple(
            COHERE_TAIL + part
            for part in (COHERE_THOUGHT.format(""), "<|START_THINKING|>", COHERE_THOUGHT.format("COT"))
        ),
        "template",
    ),
    "Command R7B": Named(
        by_role(
            *COHERE,
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% if tools %}<|START_THINKING|>{% else %}"
            "<|START_RESPONSE|>{% endif %}",
        ),
        tuple(
            COHERE_TAIL + part
            for part in (COHERE_THOUGHT.format(""), "<|START_THINKING|>", COHERE_THOUGHT.format("COT"))
        ),
        "known family",
    ),
    "MiniMax-M2": Named(
        by_role("]~b]system\n@[e~[\n", "]~b]user\n@[e~[\n", "]~b]ai\n@[e~[\n", "{{ ']~b]ai\n<think>\n' }}"),
        tuple("[e~[\n]~b]ai\n" + part for part in (THINK + CLOSED, THINK, THINK + "COT" + CLOSED)),
        "template",
    ),
    "Seed-OSS": Named(
        by_role(
            "<seed:bos>system\n@<seed:eos>",
            "<seed:bos>user\n@<seed:eos>",
            "<seed:bos>assistant\n@<seed:eos>",
            "{{ '<seed:bos>assistant\n' }}{% if thinking_budget == 0 %}{{ '<seed:think></seed:think>' }}{% endif %}",
        ),
        tuple(
            "<seed:eos><seed:bos>assistant\n" + part
            for part in ("<seed:think></seed:think>", "<seed:think>", "<seed:think>COT</seed:think>")
        ),
        "template",
    ),
    "Apriel 1.6": Named(
        by_role(
            "<|begin_system|>\n@\n",
            "<|begin_user|>\n@\n",
            "<|begin_assistant|>\n{{ m.content.split('[BEGIN FINAL RESPONSE]')[-1] }}\n<|end|>\n",
            "{{ '<|begin_assistant|>\nHere are my reasoning steps:\n' }}",
        ),
        tuple(
            "\n<|begin_assistant|>\n" + part
            for part in (
                "Here are my reasoning steps:\n\n[BEGIN FINAL RESPONSE]\n",
                "Here are my reasoning steps:\n",
                "Here are my reasoning steps:\nCOT\n[BEGIN FINAL RESPONSE]\n",
            )
        ),
        "template",
    ),
}
