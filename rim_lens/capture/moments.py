"""Moments of neurons over tokens, streamed: mean, variance, mean |a| and firing rate, with the number of tokens n.

Each block of tokens gives its own mean m and M2 = Σ (a − m)²; blocks are merged by Chan, Golub and LeVeque (1979): n =
n₁ + n₂, d = m₂ − m₁, m = m₁ + d n₂ / n, M2 = M2₁ + M2₂ + d² n₁ n₂ / n. Within a block M2 is summed about a value close
to the mean, so nothing cancels. Sums are products with a row of ones over blocks that stay in the processor's cache.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.processes import sum_over_processes

BLOCK_BYTES = 1 << 20  # of one block of tokens: fits the second-level cache together with its scratch copy
ROWS_AT_ONCE = 8192  # tokens a reduction on an accelerator takes at once


@dataclass
class Moments:
    """Moments over `n` tokens, each [..., unit], in float64 (float32 where the device has no float64)."""

    n: Float[Tensor, "..."]
    mean: Float[Tensor, "... unit"]
    m2: Float[Tensor, "... unit"]
    absolute: Float[Tensor, "... unit"]  # Σ |a|
    fired: Float[Tensor, "... unit"]  # number of tokens with a > threshold

    @classmethod
    def zeros(cls, *shape: int, device: torch.device | str = "cpu") -> "Moments":
        """Of no token; `shape` ends with the number of units."""
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        count = torch.zeros(shape[:-1], dtype=dtype, device=device)
        return cls(count, *(torch.zeros(shape, dtype=dtype, device=device) for _ in range(4)))

    @property
    def variance(self) -> Float[Tensor, "... unit"]:
        """Population variance over tokens; NaN for n = 0."""
        return self.m2 / self._count

    @property
    def mean_absolute(self) -> Float[Tensor, "... unit"]:
        """Mean |a|; NaN for n = 0."""
        return self.absolute / self._count

    @property
    def firing_rate(self) -> Float[Tensor, "... unit"]:
        """Share of tokens with a > threshold; NaN for n = 0."""
        return self.fired / self._count

    @property
    def _count(self) -> Float[Tensor, "... 1"]:
        return torch.where(self.n > 0, self.n, torch.nan)[..., None]

    def merge(self, other: "Moments") -> None:
        """Add the tokens of `other`, of the same shape."""
        n = self.n + other.n
        weight = (other.n / n.clamp(min=1))[..., None]
        shift = other.mean - self.mean
        self.m2 += other.m2 + shift**2 * self.n[..., None] * weight
        self.mean += shift * weight
        self.absolute += other.absolute
        self.fired += other.fired
        self.n = n

    def add(self, index: int | tuple[int, ...], part: "Moments") -> None:
        """Add the tokens of `part`, whose moments are [unit], to the entry at `index`."""
        entry = Moments(*(getattr(self, name)[index] for name in FIELDS))  # views, but for the 0-d count
        entry.merge(Moments(*(getattr(part, name).to(entry.mean) for name in FIELDS)))
        self.n[index] = entry.n

    def with_zeros(self, n: int, threshold: float) -> "Moments":
        """Moments over `n` tokens of which all but the ones seen were 0 (experts that a token was not sent to)."""
        rest = Moments.zeros(*self.mean.shape, device=self.mean.device)
        rest.n += n - self.n
        if threshold < 0:
            rest.fired += rest.n[..., None]
        rest.merge(self)
        return rest

    def summed(self) -> "Moments":
        """Merged over processes."""
        n = sum_over_processes(self.n)
        total = sum_over_processes(self.mean * self.n[..., None])
        mean = total / n.clamp(min=1)[..., None]
        about = self.m2 + self.n[..., None] * (self.mean - mean) ** 2
        return Moments(n, mean, *(sum_over_processes(x) for x in (about, self.absolute, self.fired)))


FIELDS = ("n", "mean", "m2", "absolute", "fired")


@dataclass(frozen=True)
class Block:
    """Moments of some tokens, each [unit] in float32, and their sums over each group of tokens."""

    moments: Moments
    signed: Float[Tensor, "group unit"]  # Σ a
    absolute: Float[Tensor, "group unit"]  # Σ |a|


def moments_of(
    values: Float[Tensor, "token unit"],
    index: Int[Tensor, " chosen"],
    member: Float[Tensor, "group chosen"],
    weights: Float[Tensor, " chosen"] | None = None,
    threshold: float = 0.0,
) -> Block:
    """Moments of the tokens `values[index]`, times `weights` where given.

    `member` is 1 where a chosen token belongs to a group (a prompt, say) and 0 elsewhere; every token belongs to
    exactly one.
    """
    n, units = len(index), values.shape[1]
    size = BLOCK_BYTES // (4 * units) if values.device.type == "cpu" else ROWS_AT_ONCE
    size = min(max(size, 16), max(n, 1))
    head = values[index[:64]].float() if weights is None else values[index[:64]].float() * weights[:64, None]
    centre = head.mean(dim=0) if n else torch.zeros(units, device=values.device)
    scratch = torch.empty(size, units, device=values.device)
    ones = torch.ones(size, device=values.device)
    signed = torch.zeros(len(member), units, device=values.device)
    absolute, squared, fired = torch.zeros_like(signed), torch.zeros_like(centre), torch.zeros_like(centre)
    everything = n == len(values)  # an index that leaves nothing out needs no copy
    for start in range(0, n, size):
        chosen = slice(start, start + size)
        block = (values[chosen] if everything else values[index[chosen]]).float()
        if weights is not None:
            block = block * weights[chosen, None]
        work, row, group = scratch[: len(block)], ones[: len(block)], member[:, chosen]
        torch.sub(block, centre, out=work)
        signed.addmm_(group, work)
        squared += row @ work.mul_(work)
        absolute.addmm_(group, torch.abs(block, out=work))
        fired += row @ torch.gt(block, threshold, out=work)
    count = torch.tensor(float(n), device=values.device)
    offset = signed.sum(dim=0) / max(n, 1)
    m2 = (squared - count * offset**2).clamp(min=0)
    signed += member.sum(dim=1, keepdim=True) * centre
    return Block(Moments(count, centre + offset, m2, absolute.sum(dim=0), fired), signed, absolute)
