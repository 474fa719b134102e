"""Do these heads refuse? The effect of ablating a set of heads on refusal, against random sets; see `dose_test`."""
# ruff: noqa: PT028 - test_heads is no test of this package

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from rim_lens.behavior.judge import Judge
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.capture.activations import mean_head_outputs
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompts as ProblemSet
from rim_lens.data.prompts import as_problems
from rim_lens.inference_time.dose_test import DoseTest, HeadTest, measures_of
from rim_lens.intervene import HeadRecording, ablate_heads, record_heads
from rim_lens.intervene.selection import chosen_heads
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.stats.controls import Alternative
from rim_lens.units import AnyHead, heads_from

__all__ = ["HeadTest", "test_heads"]


def test_heads(
    model: LensModel,
    heads: Sequence[AnyHead],
    harmful: Prompts,
    *,
    harmless: Prompts | None = None,
    maths: ProblemSet | None = None,
    doses: Sequence[int] | None = None,
    method: Literal["zero", "mean", "resample"] = "zero",
    positions: Literal["all", "decision"] = "all",
    reference: Sequence[Chat] | HeadRecording | Float[Tensor, "layer head d_head"] | None = None,
    thinking: Thinking = "off",
    cot: str | Sequence[str] | None = None,
    n_controls: int = 100,
    n_generated_controls: int = 20,
    generated: bool = True,
    judge: Judge | None = None,
    tokens: RefusalTokens | None = None,
    alternative: Alternative = "two-sided",
    seed: int = 0,
    **generation: Any,
) -> HeadTest:
    """Ablate heads and see what becomes of refusal.

    Args:
        model: the model.
        heads: the set, or a ranked list if `doses` are given.
        harmful: requests (rendered for `thinking`), or chats up to the decision position.
        harmless: the same for harmless requests, where refusals are a cost.
        maths: problems with answers; those no longer solved are a cost.
        doses: how many of the first heads to ablate, a test each; larger ones than the list are left out. Default: all.
        method: as in `ablate_heads`.
        positions: ablate everywhere, generated tokens included, or at the decision position alone.
        reference: for "mean" and "resample": chats, or what `ablate_heads` takes.
        thinking: mode of requests that are not rendered yet; "prefilled" needs `cot`.
        cot: the CoT to prefill, one for all or one a request.
        n_controls: random sets for the refusal score; fewer where fewer exist (one head has one set per other head of
            its layer), see `n_controls` in the table.
        n_generated_controls: random sets for whatever is generated; 0 for none.
        generated: whether to generate at all; False leaves the refusal scores.
        judge: labels the answers; `RefusalJudge` by default.
        tokens: the refusal tokens; `refusal_tokens(model)` by default.
        alternative: "less" where refusal was expected to fall before anything was looked at; compliance is then
            expected to rise, and costs stay two-sided.
        seed: of the control sets and bootstraps.
        generation: options of `generate`: max_new_tokens (24, and 64 for maths), cot_budget, batch_size.

    Raises:
        RimLensError: no heads or an unknown one, no control set, a method without its reference.

    """
    heads = heads_from(heads)
    chosen_heads(model, heads)  # an unknown head is an error before anything is measured
    change = partial(_ablate, model, method, positions, _prepared(model, method, reference))
    chats = as_chats(model, harmful, thinking=thinking, cot=cot)
    gentle = None if harmless is None else as_chats(model, harmless, thinking=thinking, cot=cot)
    zeroed_in = positions if method == "zero" else None
    problems = None if maths is None else as_problems(maths)
    measures = measures_of(model, chats, gentle, problems, thinking, generated, judge, tokens, generation, zeroed_in)
    test = DoseTest(model, heads, doses, n_controls, n_generated_controls, alternative, seed)
    label = f"{method} ablation" + (" at the decision position" if positions == "decision" else "")
    return test.result({label: change}, measures)


# A test framework that collects functions by name must not take this one for a test of its own.
test_heads.__test__ = False  # type: ignore[attr-defined]


def _ablate(model: LensModel, method: Any, positions: Any, reference: Any, heads: Any) -> Any:
    return ablate_heads(model, heads, method, reference=reference, positions=positions)


def _prepared(model: LensModel, method: str, reference: Any) -> Any:
    """Chats turned into what the method takes from them."""
    if isinstance(reference, HeadRecording | Tensor) or reference is None or method == "zero":
        return reference
    return mean_head_outputs(model, reference) if method == "mean" else record_heads(model, reference)
