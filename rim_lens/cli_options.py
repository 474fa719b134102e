"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer


def spelled(source: str) -> str:
    """The model's name, checked for typing errors before anything heavy is imported."""
    from rim_lens.model.names import check_spelling

    return source if Path(source).expanduser().exists() else check_spelling(source)


ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Hub id, local folder, adapter folder, .gguf file, or smollm2-135m-instruct (no hub).", callback=spelled
    ),
]
EngineOption = Annotated[
    str, typer.Option(help="What writes answers: transformers, or vllm (extra: vllm); transformers does the rest.")
]
RanksOption = Annotated[int, typer.Option(help="Devices that vLLM splits every layer over.")]
TagsOption = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="OPEN CLOSE", help=r"Texts around a CoT, if not the template's own or <think>; \n is a line break."
    ),
]
VariablesOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A variable of the chat template, as reasoning_effort=high; repeatable."),
]
ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Hub id, local folder, adapter folder, .gguf file, or smollm2-135m-instruct; several are compared.",
        callback=lambda sources: [spelled(one) for one in sources],
    ),
]
