"""What the model computed before each answer, in files beside the log: `-M record=FOLDER`.

One .npz per written chat, of its decision position: `residual` [depth, d_model], `attention` [layer, head, segment]
(the mass on each of `chat.segments.SEGMENTS`), `refusal_score`. The output's metadata in the log names the file, and
`recorded_columns` makes columns of `samples_df` of it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inspect_ai.analysis import SampleColumn

from rim_lens.behavior.refusal_score import refusal_score, refusal_tokens
from rim_lens.capture.activations import residuals
from rim_lens.capture.attention import segment_masses
from rim_lens.causal.run_scores import cut_at_decision
from rim_lens.chat.chat import Chat
from rim_lens.model.lens_model import LensModel

RECORD, SCORE = "record", "refusal_score"  # in the output's metadata


def recorded(model: LensModel, chats: Sequence[Chat], changed: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Write each chat's file and return what the log holds about it; under the ablations that are active.

    A file's name follows from the chat's tokens, the model and `changed`: what comes again is the same file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cut = [cut_at_decision(chat) for chat in chats]
    streams, masses = residuals(model, cut)[:, :, 0].numpy(), segment_masses(model, cut).numpy()
    scores, notes = refusal_score(model, cut, refusal_tokens(model)), []
    for chat, stream, mass, score in zip(cut, streams, masses, scores.tolist(), strict=True):
        key = repr((model.name, chat.token_ids.tolist(), sorted(changed.items())))
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
        np.savez(path, residual=stream, attention=mass, refusal_score=score)
        notes.append({RECORD: str(path), SCORE: score})
    return notes


def recorded_columns() -> list[SampleColumn]:
    """Columns for `inspect_ai.analysis.samples_df`: each sample's file and its refusal score."""
    return [SampleColumn(name, path=f"output.metadata.{name}", full=True) for name in (RECORD, SCORE)]
