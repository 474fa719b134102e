"""Checks of logits and attention rows: what the library computes in padded batches against each chat alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.capture.attention import attention_rows
from rim_lens.check.outcome import LOGITS, ROWS, Measured, in_sd, tolerance, worst_of
from rim_lens.check.subject import Subject, decisions
from rim_lens.errors import RimLensError
from rim_lens.model.taps import AttentionCall, Backend, Tap


class Reader(Tap):
    """Reads every layer's pattern, head outputs and residual stream and keeps nothing."""

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """Compute the last row."""
        call.rows(call.here.columns()[-1:].expand(call.here.n_rows, 1))

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> None:
        """Read."""

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> None:
        """Read."""


def padded_batch(subject: Subject) -> Measured:
    """Logits of a padded batch against each chat alone, at every token."""
    model, batch = subject.model, subject.model.batch(subject.chats)
    logits = model.logits(batch)
    worst = [in_sd(logits[row][batch.mask[row].to(logits.device)], alone) for row, alone in enumerate(subject.clean)]
    return Measured(worst_of(worst), tolerance(model, LOGITS), subject.n_tokens, "tokens")


def while_read(subject: Subject, backend: Backend) -> Measured:
    """Decision logits of a pass whose attention, heads and residual stream are read against the plain model's."""
    model, batch = subject.model, subject.model.batch(subject.chats)
    with model.tap(Reader(), backend=backend):
        logits = model.decision_logits(batch)
    worst = in_sd(logits, decisions(subject))
    return Measured(worst, tolerance(model, LOGITS), len(batch), "chats")


def rows(subject: Subject, backend: Backend) -> Measured:
    """Attention rows of every query against the model's own eager attention."""
    model, worst, n_rows = subject.model, [], 0
    mine = attention_rows(model, subject.chats, "all", backend=backend)
    for chat, here in zip(subject.chats, mine, strict=True):
        theirs = subject.plain.patterns(chat)
        if not theirs:
            raise RimLensError("no layer has attention whose pattern could be compared.")
        for layer, pattern in theirs.items():
            worst.append(float((here[layer] - pattern.cpu()).abs().max()))
            n_rows += pattern.shape[0] * pattern.shape[1]
        others = [layer for layer in range(model.n_layers) if layer not in theirs]
        if not bool(torch.isnan(here[others]).all()):
            worst.append(float("nan"))  # rows for layers that have no attention
    return Measured(worst_of(worst), tolerance(model, ROWS), n_rows, "rows")
