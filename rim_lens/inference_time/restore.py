"""Can refusal be brought back while the model thinks, by acting on its refusal heads alone, and at what cost?

Two ways, both at inference time and without a change of weights: the heads' outputs are scaled up, or the heads may not
look at the CoT (which the rest of the model still reads). Measured as in `dose_test`, against random sets.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import Judge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score, refusal_tokens
from rim_lens.causal.ablation_test import AblationTest, SetTest, measures_of
from rim_lens.causal.measures import Change
from rim_lens.causal.tested_sets import dose_sets
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompts as ProblemSet
from rim_lens.data.prompts import as_problems
from rim_lens.errors import RimLensError
from rim_lens.intervene import knock_out, scale_heads
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.stats.controls import Alternative
from rim_lens.units import AnyHead, heads_from

Way = Literal["scale", "knock_out_cot"]


def restore_refusal(
    model: LensModel,
    heads: Sequence[AnyHead],
    harmful: Prompts,
    *,
    ways: Sequence[Way] = ("scale", "knock_out_cot"),
    factors: Sequence[float] = (1.5, 2.0),
    harmless: Prompts | None = None,
    maths: ProblemSet | None = None,
    doses: Sequence[int] | None = None,
    thinking: Thinking = "on",
    cot: str | Sequence[str] | None = None,
    n_controls: int = 100,
    n_generated_controls: int = 20,
    generated: bool = True,
    judge: Judge | None = None,
    tokens: RefusalTokens | None = None,
    alternative: Alternative = "two-sided",
    seed: int = 0,
    **generation: Any,
) -> AblationTest:
    """Bring refusal back with a CoT present: scale heads up, or keep these heads alone from looking at the CoT.

    With `thinking="on"` the model first writes its CoT untouched, and every change is judged on these same CoTs. Maths
    is solved with the model's own CoT, written under the change. `recovered` compares with the same requests, thinking
    off.

    Args:
        model: the model.
        heads: the set, or a ranked list if `doses` are given.
        harmful: requests, or chats that hold a CoT.
        ways: "scale" multiplies the heads' outputs by each of `factors`; "knock_out_cot" hides the CoT from them.
        factors: of "scale".
        harmless: requests, or chats that hold a CoT, on which a refusal is a cost.
        maths: problems with answers; those no longer solved are a cost.
        doses: as in `ablation_test`, like all further arguments.
        thinking: mode of requests that are not rendered yet: "on" or "prefilled".
        cot: the CoT to prefill, one for all or one per request.
        n_controls: random sets for the refusal score.
        n_generated_controls: random sets for whatever is generated.
        generated: whether to generate and judge answers.
        judge: labels the answers.
        tokens: the refusal tokens.
        alternative: "greater" where refusal was expected to return before anything was looked at; compliance is then
            expected to fall, and costs stay two-sided.
        seed: of the control sets and bootstraps.
        generation: options of `generate`.

    Raises:
        RimLensError: as `ablation_test`; a chat without a CoT.

    """
    chats = _with_cot(model, as_chats(model, harmful, thinking=thinking, cot=cot), generation)
    harmless_chats = (
        None
        if harmless is None
        else _with_cot(model, as_chats(model, harmless, thinking=thinking, cot=cot), generation)
    )
    changes: dict[str, Change] = {}
    for way in ways:
        if way == "scale":
            changes |= {f"scaled {factor:g}×": partial(_scale, model, factor) for factor in factors}
        else:
            changes["CoT hidden"] = partial(_hide_cot, model)
    problems = None if maths is None else as_problems(maths)
    measures = measures_of(model, chats, harmless_chats, problems, "on", generated, judge, tokens, generation)
    off = model.render([chat.request for chat in chats], thinking="off")
    target = refusal_score(model, off, tokens or refusal_tokens(model))
    chosen = heads_from(heads)
    sets = dose_sets(model, chosen, "heads", chosen, doses, max(n_controls, n_generated_controls), seed=seed)
    limits = {"score": n_controls, "answers": n_generated_controls, "likelihood": 0}
    test = SetTest(model, chosen, "heads", "all", sets, limits, alternative, seed)
    return test.result(changes, measures, {"refusal score, harmful": target})


def _scale(model: LensModel, factor: float, heads: Any) -> Any:
    return scale_heads(model, heads, factor)


def _hide_cot(model: LensModel, heads: Any) -> Any:
    return knock_out(model, heads, "cot")


def _with_cot(model: LensModel, chats: list[Chat], generation: dict[str, Any]) -> list[Chat]:
    """Chats with a CoT up to the decision position; those in mode "on" without one get the model's own."""
    open_ended = [i for i, chat in enumerate(chats) if chat.thinking == "on" and not chat.where("think_close").any()]
    written = list(chats)
    if open_ended:
        own = generate(model, [chats[i] for i in open_ended], **{**generation, "max_new_tokens": 1, "temperature": 0.0})
        for i, answer in zip(open_ended, own, strict=True):
            written[i] = replace(answer.chat, thinking="prefilled")  # from here on the CoT is given
    without = next((chat for chat in written if not chat.where("cot").any()), None)
    if without is not None:
        raise RimLensError(
            f"restore_refusal needs chats with a CoT, but {without.request[:40]!r} has none; render it with "
            "thinking='on' or 'prefilled'."
        )
    return written
