"""What each sentence of a CoT does to refusal: it is hidden, the CoT is cut off before it, or written anew from it on.

For sentence s of a chat, effects on the refusal score at the decision position, in nats:

hidden      score while heads may not look at the sentence's tokens  −  score
cut         score with the CoT cut off before the sentence           −  score          (early answering)
brings      score with the CoT cut off behind the sentence           −  score with it cut off before
resampled   mean over continuations from before the sentence whose first sentence is another one
            −  mean over continuations from behind it                                  (k of each)

A continuation's first sentence is *another one* where the words that it shares with the sentence are less than half of
the words of both (Jaccard); the source compares sentence embeddings, which need a model of their own.

Sources: Bogdan et al. 2025, "Thought Anchors" (resampling, attention suppression); Lanham et al. 2023, "Measuring
Faithfulness in Chain-of-Thought Reasoning" (early answering). Whole passes that hide a sentence are `knock_out`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import Judge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.behavior.sentences import plain, split_sentences
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.inference_time.cot_sentences import CotSentence, cot_sentences, cut_before, open_before
from rim_lens.inference_time.sentence_scores import Queries, SentenceScores, can_share
from rim_lens.intervene.selection import Heads, chosen_heads
from rim_lens.model.as_chats import answered_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_means
from rim_lens.units import Head, heads_from, listed

EFFECTS = ("hidden", "cut", "brings", "resampled")
THIRDS = ("first third", "middle third", "last third")
SHORT_ANSWER = 24  # tokens
SIMILAR = 0.5


@dataclass(frozen=True, eq=False)
class CotImportance(Result):
    """What each sentence of each CoT does to the refusal score.

    `table`: one row per chat and sentence with its `text`, `n_tokens`, `place` in the CoT (0 to 1) and its effects in
    nats (see the module; `resampled`, of `n_other` and `n_same` continuations, is NaN where there are none). With a
    judge `answer_cut` is the label of the answer when the CoT is cut off before the sentence. `summary`: per third of
    the CoT and effect the mean over `n` chats with its 95 % interval. `scores`: each chat's own score, and its answer's
    label.
    """

    figure: ClassVar = "cot:shaded_sentences"

    table: pd.DataFrame
    summary: pd.DataFrame
    scores: pd.DataFrame
    queries: str
    heads: list[Head] | None
    how: str
    n_resampled: int
    tokens: str

    def caption(self) -> str:
        """What was hidden from what, and over how many CoTs."""
        who = "all heads" if self.heads is None else f"{len(self.heads)} heads"
        where = "behind the CoT" if self.queries == "answer" else "behind the sentence"
        return (
            f"n = {len(self.scores)} CoTs, {len(self.table)} sentences; hidden from {who} {where} ({self.how}); "
            f"{self.n_resampled} continuations; {self.tokens}."
        )


def cot_importance(
    model: LensModel,
    chats: Prompts,
    *,
    heads: Heads | None = None,
    queries: Queries = "answer",
    resample: int = 0,
    temperature: float = 0.7,
    judge: Judge | None = None,
    tokens: RefusalTokens | None = None,
    seed: int = 0,
    **generation: Any,
) -> CotImportance:
    """Weigh every sentence of the CoT of every chat.

    Args:
        model: the model.
        chats: chats with a closed CoT up to the decision position, such as the `chat` of a generation with thinking on.
        heads: which heads may not look at a hidden sentence; all by default.
        queries: "answer" hides a sentence from what follows the CoT, "later" from all that follows the sentence. The
            first costs a few tokens per sentence, the second the tokens behind it.
        resample: continuations per sentence and side; 0 for none.
        temperature: of the continuations.
        judge: labels the answers to cut CoTs.
        tokens: the refusal tokens; `refusal_tokens(model)` by default.
        seed: of continuations and bootstraps.
        generation: options of `generate` for judged answers: max_new_tokens (24).

    Raises:
        RimLensError: no chats, a chat without a closed CoT, an unknown head or kind of queries, or a negative
            `resample`.

    """
    chats = answered_chats(chats, "The chats of cot_importance")
    if not chats:
        raise RimLensError("cot_importance needs at least one chat with a CoT.")
    if queries not in ("answer", "later"):
        raise RimLensError(f"unknown queries {queries!r}: use 'answer' or 'later'.")
    if resample < 0:
        raise RimLensError(f"resample counts continuations, got {resample}.")
    tokens = tokens or refusal_tokens(model)
    every = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    chosen = chosen_heads(model, every if heads is None else heads)
    tables, scores = [], []
    for number, chat in enumerate(track(chats, "sentences of CoTs")):
        sentences = cot_sentences(model, chat)
        of_chat = SentenceScores(model, chat, sentences, chosen)
        score = float(tokens.score(of_chat.clean()[None])[0])
        cut = np.append(tokens.score(of_chat.cut()).cpu().numpy(), score)
        columns = {
            "hidden": tokens.score(of_chat.hidden(queries)).cpu().numpy() - score,
            "cut": cut[:-1] - score,
            "brings": np.diff(cut),
        }
        columns |= _resampled(model, chat, sentences, score, resample, temperature, tokens, seed)
        labels = {} if judge is None else _judged(model, chat, sentences, judge, generation)
        tables.append(_table(number, sentences, columns, labels.pop("answers", None)))
        scores.append({"chat": number, "request": chat.request, "score": score} | labels)
    table = pd.concat(tables, ignore_index=True)
    return CotImportance(
        table=table,
        summary=_summary(table, seed),
        scores=pd.DataFrame(scores),
        queries=queries,
        heads=None if heads is None else heads_from(listed(heads)),
        how="shared prefix" if can_share(model) else "whole passes",
        n_resampled=resample,
        tokens=str(tokens),
        manifest=Manifest.collect(model, seed=seed, temperature=temperature),
    )


def _table(
    number: int,
    sentences: Sequence[CotSentence],
    columns: dict[str, Any],
    answers: list[str] | None,
) -> pd.DataFrame:
    first, length = sentences[0].start, sentences[-1].stop - sentences[0].start
    frame = pd.DataFrame(
        {
            "chat": number,
            "sentence": np.arange(len(sentences)),
            "text": [sentence.text for sentence in sentences],
            "n_tokens": [sentence.stop - sentence.start for sentence in sentences],
            "place": [((sentence.start + sentence.stop) / 2 - first) / length for sentence in sentences],
        }
        | columns
    )
    return frame if answers is None else frame.assign(answer_cut=answers)


def _resampled(
    model: LensModel,
    chat: Chat,
    sentences: Sequence[CotSentence],
    score: float,
    k: int,
    temperature: float,
    tokens: RefusalTokens,
    seed: int,
) -> dict[str, Any]:
    """Continuations from before each sentence against those from behind it; behind the last one the score itself."""
    nothing = np.full(len(sentences), np.nan)
    if k == 0:
        return {"resampled": nothing, "n_other": 0, "n_same": 0}
    means, others, n_other = [], [], []
    for row, one in enumerate(sentences):
        written = generate(
            model,
            [open_before(model, chat, one.start)],
            samples=k,
            temperature=temperature,
            seed=seed + row,
            cot_budget=sentences[-1].stop - one.start,
            max_new_tokens=1,
            decision_score=tokens.score,
            progress=False,
        )
        scores = np.array([answer.score for answer in written])
        is_other = np.array(
            [differs(_first(_continued(model, one.start, answer.chat)), one.text) for answer in written]
        )
        means.append(float(scores.mean()))
        others.append(float(scores[is_other].mean()) if is_other.any() else np.nan)
        n_other.append(int(is_other.sum()))
    n_same = [k] * (len(sentences) - 1) + [1]
    return {"resampled": np.array(others) - [*means[1:], score], "n_other": n_other, "n_same": n_same}


def _continued(model: LensModel, start: int, chat: Chat) -> str:
    """What a model wrote in the CoT from token `start` on."""
    return model.chat_format.decode(chat.token_ids[start:][chat.where("cot")[start:]].tolist())


def _first(text: str) -> str:
    """The first sentence of a text, or nothing."""
    return next((sentence.text for sentence in split_sentences(plain(text))), "")


def differs(one: str, other: str) -> bool:
    """Whether two sentences share less than half of their words."""
    words = [{split.strip(".,;:!?\"'()").lower() for split in text.split()} - {""} for text in (one, other)]
    union = words[0] | words[1]
    return not union or len(words[0] & words[1]) / len(union) < SIMILAR


def _judged(
    model: LensModel, chat: Chat, sentences: Sequence[CotSentence], judge: Judge, generation: dict[str, Any]
) -> dict[str, Any]:
    """Labels of the answers to the CoT cut before each sentence, and to the whole of it."""
    places = [*(sentence.start for sentence in sentences), sentences[-1].stop]
    cut = [cut_before(model, chat, place) for place in places]
    options = {"max_new_tokens": SHORT_ANSWER} | generation
    answers = generate(model, cut, temperature=0, progress=False, **options)
    cots = [model.chat_format.decode(one.token_ids[one.where("cot")].tolist()) for one in cut]
    judged = judge(
        [chat.request] * len(cut), [answer.response for answer in answers], cots, [a.truncated for a in answers]
    )
    labels = [one.label for one in judged]
    return {"answers": labels[:-1], "answer": labels[-1]}


def _summary(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean effect per third of the CoT, each chat's sentences averaged first."""
    third = np.minimum((table["place"] * 3).astype(int), 2)
    rows = []
    for number, name in enumerate(THIRDS):
        part = table[third == number]
        for effect in EFFECTS:
            of_chats = part.groupby("chat")[effect].mean().dropna().to_numpy()
            if len(of_chats):
                low, high = map(float, bootstrap_means(of_chats, seed=seed))
                mean = float(of_chats.mean())
                rows.append(
                    {"third": name, "effect": effect, "n": len(of_chats), "mean": mean, "low": low, "high": high}
                )
    return pd.DataFrame(rows)
