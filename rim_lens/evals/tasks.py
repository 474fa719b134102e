"""Tasks: refusal and maths at thinking off, on and prefilled, on the same prompts as `measure_rim`.

    inspect eval rim_lens/refusal --model rim_lens/NAME -T thinking=on -T n=32

The settings are Inspect's own (`max_tokens`, `reasoning_tokens`, an assistant message with reasoning), so that other
models of Inspect's can be asked too.
"""

from typing import TYPE_CHECKING, Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ContentReasoning, GenerateConfig
from inspect_ai.scorer import Scorer
from inspect_ai.solver import generate

from rim_lens.data.prompts import Prompt, PromptSet, load_prompts
from rim_lens.errors import RimLensError
from rim_lens.evals.one_sentence import one_sentence
from rim_lens.evals.scorers import maths_answer, refusal_label

if TYPE_CHECKING:
    from rim_lens.behavior.conditions import Condition

MODES = ("off", "on", "prefilled")


@task
def refusal(
    prompts: str = "harmful",
    n: int | None = None,
    seed: int = 0,
    thinking: str | bool = "off",
    wordings: str | None = None,
    wordings_per_prompt: int = 1,
    max_tokens: int = 32,
    cot_budget: int = 96,
    judge: str = "rules",
) -> Task:
    """Rates of refused, complied and incoherent answers to a prompt set.

    Args:
        prompts: a set's name or file; `harmless` for over-refusal.
        n: prompts, drawn with `seed`; all by default.
        seed: of the draw.
        thinking: `off`, `on` or `prefilled`.
        wordings: class of given CoTs for `prefilled`: effort_minimizing, careful, neutral or irrelevant.
        wordings_per_prompt: how many of them each prompt is asked with, in rotation.
        max_tokens: longest answer; refusals show in the first sentence.
        cot_budget: longest CoT of the model's own, in tokens.
        judge: `rules`, or `grader`, the model of that role.

    Raises:
        EvalError: no such set, file, thinking mode, class of wordings or judge; a number that is none.

    """
    with one_sentence():
        asked = load_prompts(prompts, whole("n", n) if n is not None else None, seed)
        scorer = refusal_label(judge)
        return asking(asked, scorer, thinking, wordings, wordings_per_prompt, max_tokens, cot_budget)


@task
def maths(
    prompts: str = "maths",
    n: int | None = None,
    seed: int = 0,
    thinking: str | bool = "off",
    wordings: str | None = None,
    wordings_per_prompt: int = 1,
    max_tokens: int = 64,
    cot_budget: int = 96,
) -> Task:
    """Share of maths problems solved; arguments as for `refusal`, the set with an answer to every problem.

    Raises:
        EvalError: as `refusal`, and for a problem without an answer.

    """
    with one_sentence():
        asked = load_prompts(prompts, whole("n", n) if n is not None else None, seed)
        without = [problem.id for problem in asked if not problem.answer]
        if without:
            raise RimLensError(
                f"{asked.name} has no answer to {without[0]} ({len(without)} of {len(asked)} problems): give a set "
                "with answers."
            )
        return asking(asked, maths_answer(), thinking, wordings, wordings_per_prompt, max_tokens, cot_budget)


def asking(
    prompts: PromptSet,
    scorer: Scorer,
    thinking: str | bool,
    wordings: str | None,
    wordings_per_prompt: int,
    max_tokens: int,
    cot_budget: int,
) -> Task:
    """The task of asking these prompts in one thinking condition."""
    condition = condition_of(thinking, wordings)
    samples = samples_of(prompts, condition, whole("wordings_per_prompt", wordings_per_prompt))
    config = GenerateConfig(max_tokens=whole("max_tokens", max_tokens))
    if condition.thinking == "on":
        config.reasoning_tokens = whole("cot_budget", cot_budget)
    elif condition.thinking == "off":
        config.reasoning_effort = "none"
    about = {"prompts": prompts.source, "sha256": prompts.sha256, "thinking": condition.thinking}
    return Task(
        dataset=MemoryDataset(samples, name=prompts.name, location=prompts.source),
        solver=generate(),
        scorer=scorer,
        config=config,
        metadata=about | ({"wordings": condition.name} if condition.wordings else {}),
    )


def condition_of(thinking: str | bool, wordings: str | None) -> "Condition":
    """The thinking condition; the shell's `-T thinking=on` arrives as True, since YAML reads it so."""
    from rim_lens.behavior.conditions import conditions

    mode = {True: "on", False: "off"}.get(thinking, thinking) if isinstance(thinking, bool) else thinking
    if mode not in MODES:
        raise RimLensError(f"unknown thinking mode {mode!r}: use one of {', '.join(MODES)}.")
    if (mode == "prefilled") != (wordings is not None):
        raise RimLensError(
            "A class of wordings goes with thinking=prefilled and only with it, wordings=careful for instance."
        )
    return conditions([], [wordings])[0] if wordings is not None else conditions([str(mode)], [])[0]


def samples_of(prompts: PromptSet, condition: "Condition", wordings_per_prompt: int) -> list[Sample]:
    """One sample per answer, wordings in rotation."""
    from rim_lens.behavior.conditions import rotation

    asked = rotation(len(prompts), len(condition.wordings), wordings_per_prompt)
    return [sample(prompts[one.prompt], condition, one.wording) for one in asked]


def sample(prompt: Prompt, condition: "Condition", wording: int) -> Sample:
    """One prompt, with the CoT of this number where one is given."""
    about: dict[str, Any] = {"prompt_id": prompt.id, "category": prompt.category}
    if wording < 0:
        return Sample(input=prompt.text, target=prompt.answer or "", id=prompt.id, metadata=about)
    reasoning = ContentReasoning(reasoning=condition.wordings[wording])
    return Sample(
        input=[ChatMessageUser(content=prompt.text), ChatMessageAssistant(content=[reasoning])],
        target=prompt.answer or "",
        id=f"{prompt.id}/{condition.name}-{wording + 1:02d}",
        metadata=about | {"wordings": condition.name, "wording": wording},
    )


def whole(name: str, value: Any) -> int:
    """A whole number from 1, as the command line gives it."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RimLensError(f"{name} must be a whole number from 1, got {value!r}.")
    return value
