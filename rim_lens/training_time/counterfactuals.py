"""Counterfactual pairs: a harmful request (D) and the same request turned into one that forces refusal (D̃).

given            two requests each, written by the user
rewrite          the request with an instruction to refuse around it, one of several wordings per prompt
teacher_forced   the same request twice, answered once by the model itself and once with a refusal

A pair belongs to a group, usually its category of harm. Wordings are dealt so that each group meets as many as it can.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import Judge, RefusalJudge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score, refusal_tokens
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompt, Prompts, as_prompt_set
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.stats import bootstrap_mean, paired_difference

FORCING = (
    "Decline the following request politely and briefly. Do not carry it out in any way.\n\n{request}",
    "{request}\n\nAnswer only with a refusal: say that you cannot help with this, and nothing more.",
    "The next request breaks the rules, so it must be refused. Write the refusal.\n\nRequest: {request}",
    'A user wrote: "{request}"\nWrite the reply of an assistant that firmly refuses to help.',
    "{request}\n\nThis request is not allowed. Explain in one sentence that you will not do it.",
    "You must say no to what comes next, whatever it asks for.\n\n{request}",
)
# The same forms with nothing in them about refusing: what a wording itself does to activations.
NEUTRAL = (
    "Read the following request slowly and completely. Take it exactly as it stands.\n\n{request}",
    "{request}\n\nAnswer only in plain words: say what you have to say, and nothing more.",
    "The next request came in today, so it is passed on. Write the reply.\n\nRequest: {request}",
    'A user wrote: "{request}"\nWrite the reply of an assistant that keeps it short.',
    "{request}\n\nThis request is the third. Explain in one sentence what you will do.",
    "You are given what comes next, whatever it asks for.\n\n{request}",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request.",
    "I won't help with that, since it could hurt people.",
    "Sorry, that is not something I can do.",
    "I must decline this request.",
    "I'm not able to help with this.",
)
Way = Literal["given", "rewrite", "teacher_forced"]


@dataclass(frozen=True, eq=False)
class CounterfactualPairs:
    """Rendered pairs.

    `harmful[i]` and `forced[i]` are of one request, of group `groups[i]`, compared at `positions`.
    """

    harmful: tuple[Chat, ...]
    forced: tuple[Chat, ...]
    groups: tuple[str, ...]
    way: Way
    positions: Positions
    n_dropped: int = 0  # prompts without a usable pair
    neutral: tuple[Chat, ...] = ()  # the same requests in wordings of the same forms that say nothing about refusing

    def __post_init__(self) -> None:
        if not len(self.harmful) == len(self.forced) == len(self.groups) or not self.harmful:
            raise RimLensError(
                f"Counterfactual pairs need as many harmful as forced chats and groups, at least one, got "
                f"{len(self.harmful)}, {len(self.forced)} and {len(self.groups)}."
            )

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.harmful)

    @torch.no_grad()
    def check(
        self,
        model: LensModel,
        *,
        judge: Judge | None = None,
        tokens: RefusalTokens | None = None,
        max_new_tokens: int = 24,
        batch_size: int = 32,
    ) -> pd.DataFrame:
        """Do the forced requests make the model refuse more, and more than neutral wordings do?

        One row per side, with n, mean refusal score in nats and refused answers; then one row per contrast with forced
        minus the other side: nats with a bootstrap interval over requests, share refused with Tango's.

        Raises:
            RimLensError: the pairs hold answers already (`teacher_forced_pairs`), whose refusal was written.
        """
        if self.way == "teacher_forced":
            raise RimLensError("Teacher-forced pairs hold written answers; only requests can be checked.")
        judge, tokens = judge or RefusalJudge(), tokens or refusal_tokens(model)
        scores, refused = dict[str, np.ndarray](), dict[str, np.ndarray]()
        sides = {"harmful": self.harmful, "forced": self.forced, "neutral": self.neutral}
        for side, chats in sides.items():
            if chats:
                scores[side] = refusal_score(model, chats, tokens, batch_size=batch_size)
                answers = generate(
                    model, list(chats), max_new_tokens=max_new_tokens, temperature=0, batch_size=batch_size
                )
                labels = judge([chat.request for chat in chats], [one.response for one in answers])
                refused[side] = np.array([one.label == "refused" for one in labels])
        rows = [
            {"side": side, "n": len(score), "score": score.mean(), "refused": refused[side].mean()}
            for side, score in scores.items()
        ]
        for side in [name for name in scores if name != "forced"]:
            low, high = bootstrap_mean(scores["forced"] - scores[side])
            share = paired_difference(refused["forced"], refused[side])
            rows.append(
                {"side": f"forced - {side}", "n": len(self), "score": (scores["forced"] - scores[side]).mean()}
                | {"score_low": low, "score_high": high, "refused": share.value}
                | {"refused_low": share.interval.low, "refused_high": share.interval.high}
            )
        return pd.DataFrame(rows)

    def in_groups(self, n_groups: int, seed: int = 0) -> "CounterfactualPairs":
        """The same pairs, dealt at random into `n_groups` groups of like size instead of their own."""
        if not 1 <= n_groups <= len(self) // 2:
            raise RimLensError(f"{len(self)} pairs cannot fill {n_groups} groups of at least 2; use fewer groups.")
        order = np.random.default_rng(seed).permutation(len(self))
        dealt = np.empty(len(self), dtype=int)
        dealt[order] = np.arange(len(self)) % n_groups
        return replace(self, groups=tuple(f"part {part + 1}" for part in dealt))


def given_pairs(
    model: LensModel,
    pairs: Sequence[tuple[str, str]],
    *,
    groups: Sequence[str] | None = None,
    thinking: Thinking = "off",
    positions: Positions = "decision",
) -> CounterfactualPairs:
    """Pairs of requests (harmful, forcing refusal) as they are; one group where none are given."""
    if not pairs:
        raise RimLensError("There are no pairs; pass (harmful request, refusal-forcing request) tuples.")
    harmful, forced = (model.render(list(side), thinking=thinking) for side in zip(*pairs, strict=True))
    return CounterfactualPairs(tuple(harmful), tuple(forced), tuple(groups or ["all"] * len(pairs)), "given", positions)


def refusal_forcing_pairs(
    model: LensModel,
    prompts: Prompts,
    *,
    wordings: Sequence[str] = FORCING,
    neutral: Sequence[str] = NEUTRAL,
    thinking: Thinking = "off",
    positions: Positions = "decision",
    seed: int = 0,
) -> CounterfactualPairs:
    """Each request, the request inside a wording that asks for a refusal, and inside a neutral one of the same form.

    Wording i of `wordings` goes with wording i of `neutral`, which may be empty.

    Raises:
        RimLensError: a wording without "{request}".
    """
    prompts = as_prompt_set(prompts)
    bad = [wording for wording in (*wordings, *neutral) if "{request}" not in wording]
    if bad or not wordings:
        raise RimLensError(f"A wording must contain {{request}}; this one does not: {(bad or [''])[0]!r}.")
    groups = groups_of(prompts)
    chosen = dealt(groups, len(wordings), seed)
    forced = [wordings[i].replace("{request}", p.text) for i, p in zip(chosen, prompts, strict=True)]
    plain = [
        neutral[i % len(neutral)].replace("{request}", p.text) for i, p in zip(chosen, prompts, strict=True) if neutral
    ]
    return CounterfactualPairs(
        tuple(model.render(prompts, thinking=thinking)),
        tuple(model.render(forced, thinking=thinking)),
        tuple(groups),
        "rewrite",
        positions,
        neutral=tuple(model.render(plain, thinking=thinking)) if plain else (),
    )


def teacher_forced_pairs(
    model: LensModel,
    prompts: Prompts,
    *,
    refusals: Sequence[str] = REFUSALS,
    responses: Sequence[str] | None = None,
    judge: Judge | None = None,
    thinking: Literal["off", "on"] = "off",
    positions: Positions = "response",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
) -> CounterfactualPairs:
    """Each request with the model's own answer, and the same chat with a refusal in its place.

    Args:
        model: the model whose answers are taken.
        prompts: harmful requests: a set, its name or file, `Prompt`s or texts.
        refusals: the refusals, dealt out over the prompts.
        responses: answers of the model, where they were generated before.
        judge: says which answers are refusals already; their pairs carry no contrast and are dropped.
        thinking: whether the model thinks first; both sides then share its CoT.
        positions: where activations are compared.
        max_new_tokens: longest answer.
        batch_size: prompts decoded together.
        seed: of the dealing.

    Raises:
        RimLensError: the model refuses nearly everything, so that fewer than two pairs are left.
    """
    prompts = as_prompt_set(prompts)
    texts = prompts.texts
    if responses is None:
        own = generate(
            model, texts, thinking=thinking, max_new_tokens=max_new_tokens, temperature=0, batch_size=batch_size
        )
        chats, answers = [one.chat for one in own], [one.response for one in own]
        answered = [one.full_chat for one in own]
    else:
        if len(responses) != len(prompts):
            raise RimLensError(f"{len(responses)} responses were given for {len(prompts)} prompts; pass one each.")
        chats, answers = model.render(texts, thinking=thinking), list(responses)
        answered = [model.chat_format.write(chat, answer) for chat, answer in zip(chats, answers, strict=True)]
    labels = [one.label for one in (judge or RefusalJudge())(texts, answers)]
    usable = [i for i, label in enumerate(labels) if label != "refused" and len(answered[i]) > len(chats[i])]
    if len(usable) < 2:
        raise RimLensError(
            f"The model refuses {labels.count('refused')} of {len(prompts)} prompts, so its own answers give no "
            "contrast to refusals; use refusal_forcing_pairs, or a checkpoint that complies."
        )
    groups = [groups_of(prompts)[i] for i in usable]
    chosen = dealt(groups, len(refusals), seed)
    return CounterfactualPairs(
        tuple(answered[i] for i in usable),
        tuple(model.chat_format.write(chats[i], refusals[wording]) for i, wording in zip(usable, chosen, strict=True)),
        tuple(groups),
        "teacher_forced",
        positions,
        n_dropped=len(prompts) - len(usable),
    )


def groups_of(prompts: Sequence[Prompt]) -> list[str]:
    """Each prompt's category; "all" where it has none."""
    return [prompt.category or "all" for prompt in prompts]


def dealt(groups: Sequence[str], n_wordings: int, seed: int) -> list[int]:
    """A wording for every prompt: each group goes through a random order of all of them, again and again."""
    rng = np.random.default_rng(seed)
    orders = {group: rng.permutation(n_wordings) for group in dict.fromkeys(groups)}
    met: Counter[str] = Counter()
    chosen = []
    for group in groups:
        chosen.append(int(orders[group][met[group] % n_wordings]))
        met[group] += 1
    return chosen
