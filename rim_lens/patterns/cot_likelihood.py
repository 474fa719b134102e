"""Mean negative log-likelihood of a CoT's tokens under a model, the problem given; exp of it is the perplexity."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from rim_lens.model.batch import Batch
from rim_lens.model.fitting import over_batches
from rim_lens.model.lens_model import LensModel


@torch.no_grad()
def cot_nll(
    model: LensModel, problems: Sequence[str], cots: Sequence[str], batch_size: int = 8
) -> Float[np.ndarray, "cot"]:
    """Nats per token of each CoT, written inside the think tags after its problem."""
    chats = [
        model.render(problem, thinking="prefilled", cot=cot)[0] for problem, cot in zip(problems, cots, strict=True)
    ]
    nll = np.full(len(chats), np.nan)

    def read(indices: list[int], batch: Batch) -> None:
        inside = batch.where("cot")[:, 1:]
        logits = model.logits(batch)[:, :-1][inside].float()  # the vocabulary is wide: other positions are left out
        each = logits.logsumexp(dim=-1) - logits.gather(-1, batch.tokens[:, 1:][inside][:, None]).squeeze(-1)
        row = inside.nonzero()[:, 0]
        total = torch.zeros(len(batch), device=each.device).index_add_(0, row, each)
        nll[indices] = (total / inside.sum(dim=1)).cpu().numpy()

    for _ in over_batches(model, chats, batch_size, read, "likelihood of CoTs", split=False):
        pass
    return nll
