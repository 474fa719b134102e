"""Does the attention of chosen heads go with refusal on chats that did not choose them?

For each contrast the first k heads are taken as they are ranked, and their attention to the contrast's span is averaged
for every new chat. `outcome` has the sign of the contrast: high where the paper's account expects much attention.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.inference_time.refusal_heads import COT, EMPTY_SPAN, RefusalHeads
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts

# The span that a contrast is about, the thinking modes that it is read in, and the sign of refusal in it.
READ = {"cot_divergence": (COT, ("on", "prefilled"), -1.0), "empty_span": (EMPTY_SPAN, ("off",), 1.0)}
K = 8


def on_other_chats(
    model: LensModel,
    heads: RefusalHeads,
    chats: Prompts,
    outcome: Float[np.ndarray, "chat"],
    *,
    k: int = K,
    batch_size: int = 8,
) -> RefusalHeads:
    """The same heads with `held_out`: one row per contrast and chat, with `attention` (mass, 0 to 1) and `outcome`.

    Args:
        model: the model.
        heads: heads that other chats have ranked.
        chats: chats of other requests, up to the decision position; a mode decides which contrast a chat enters.
        outcome: a number per chat that is higher for refusal, for instance the refusal score.
        k: how many of each contrast's first heads are averaged.
        batch_size: chats per pass.

    Raises:
        RimLensError: another number of outcomes than of chats, or no contrast that has both heads and chats.
    """
    rendered = as_chats(model, chats)
    if np.shape(outcome) != (len(rendered),):
        raise RimLensError(f"{len(rendered)} chats need as many outcomes, got an array of shape {np.shape(outcome)}.")
    mass = span_attention(model, rendered, batch_size=batch_size).mass
    parts = []
    for name in (name for name in READ if (heads.table["contrast"] == name).any()):
        segments, modes, sign = READ[name]
        chosen = heads.ranked(name, k)  # type: ignore[arg-type]
        rows = [i for i, chat in enumerate(rendered) if enters(chat, modes, segments)]
        if chosen and rows:
            layer, head = np.array(chosen).T
            attention = mass[..., segments].sum(axis=-1)[:, layer, head].mean(axis=1)
            columns = {"contrast": name, "request": [rendered[i].request for i in rows], "heads": len(chosen)}
            parts.append(pd.DataFrame(columns | {"attention": attention[rows], "outcome": sign * outcome[rows]}))
    if not parts:
        raise RimLensError("No contrast has both ranked heads and other chats of its thinking mode; pass such chats.")
    return replace(heads, held_out=pd.concat(parts, ignore_index=True))


def enters(chat: Chat, modes: tuple[str, ...], segments: list[int]) -> bool:
    """Whether a chat has the mode and the span of a contrast."""
    return chat.thinking in modes and bool(np.isin(chat.segment_ids, segments).any())
