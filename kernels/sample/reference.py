"""How is a token drawn from logits?

The definition that every provider reproduces token for token. A row's filters are thresholds on its logits, so that
no sort is needed, and the random choice is the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014) with noise from a
stateless hash of (seed, position, token id): the same seed gives the same token whatever else is in the batch.
"""

from dataclasses import dataclass
from typing import Final

import torch

LOGPROB_TOLERANCE: Final = 2e-4
_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """One entry per row, R rows.

    ``temperature`` [R] float32, 0 meaning greedy (the filters then do nothing); ``top_k`` [R] int32, 0 off; ``top_p``
    [R] float32, 1 off; ``min_p`` [R] float32, 0 off; ``seed`` [R] int64, all 64 bits used; ``position`` [R] int64,
    the index that the token will have in its sequence. Row r must not draw ``banned[banned_starts[r] :
    banned_starts[r+1]]`` (int32; starts [R+1] int32).
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    banned: torch.Tensor
    banned_starts: torch.Tensor


@dataclass(frozen=True, slots=True)
class Samples:
    """``tokens`` [R] int64, ``logprobs`` and ``entropies`` [R] float32 in nats.

    Both are of the model's own distribution: before temperature, filters and bans.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """Draw one token per row of logits [R, V] (float32 or bfloat16).

    In order: bans; greedy takes the largest logit, of equal ones the smallest id. Otherwise ``z = (logit - largest) /
    temperature``; ``top_k`` keeps what is not below the k-th largest; ``top_p`` keeps a token if those above it hold
    less than ``top_p`` of the mass that top_k kept; ``min_p`` keeps ``exp(z) >= min_p``; equal logits share their
    fate. The largest ``z + Gumbel noise`` of what is kept is drawn.
    """
    tokens = torch.empty(logits.shape[0], dtype=torch.int64)
    logprobs = torch.empty(logits.shape[0], dtype=torch.float32)
    entropies = torch.empty(logits.shape[0], dtype=torch.float32)
    starts = batch.banned_starts.tolist()
    for row in range(logits.shape[0]):
        raw = logits[row].double()
        own = raw.log_softmax(-1)
        allowed = raw.clone()
        allowed[batch.banned[starts[row] : starts[row + 1]].long()] = float("-inf")
        token = _draw(allowed, batch, row) if batch.temperature[row] > 0 else int(allowed.argmax())
        tokens[row], logprobs[row] = token, own[token]
        entropies[row] = -(own.exp() * own).nansum()
    return Samples(tokens.to(logits.device), logprobs.to(logits.device), entropies.to(logits.device))


def _draw(logits: torch.Tensor, batch: SamplingBatch, row: int) -> int:
    z = (logits - logits.max()) / batch.temperature[row].double()
    top_k = int(batch.top_k[row])
    kept = torch.ones_like(z, dtype=torch.bool)
    if 0 < top_k < z.shape[0]:
        kept &= z >= z.topk(top_k).values[-1]
    top_p = float(batch.top_p[row].double())
    if top_p < 1:
        order = z[kept].sort(descending=True).values
        mass = order.softmax(-1)
        above = mass.cumsum(-1) - mass
        count = max(int((above < top_p).sum()), 1)
        kept &= z >= order[count - 1]
    min_p = float(batch.min_p[row].double())
    if min_p > 0:
        kept &= z.exp() >= min_p
    noise = gumbel(int(batch.seed[row]), int(batch.position[row]), z.shape[0], z.device)
    return int((z + noise).masked_fill(~kept, float("-inf")).argmax())


def gumbel(seed: int, position: int, size: int, device: torch.device) -> torch.Tensor:
    """The noise of token ids 0 to ``size - 1``: float64 [size], ``-log(-log1p(-v))`` for uniform ``v``.

    ``v`` has 32 bits and small values are the fine-grained ones: they make the large noise that decides.
    """
    key = _mix(torch.tensor(seed & _MASK, device=device))
    key = _mix(key ^ (seed >> 32 & _MASK))
    key = _mix(key ^ (position & _MASK))
    second = _mix((key + 0x9E3779B9) & _MASK)
    ids = torch.arange(size, dtype=torch.int64, device=device)
    bits = _mix(_mix((ids + key) & _MASK) ^ second)
    uniform = (bits.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-uniform))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Wellons' lowbias32: every input bit flips every output bit with probability near a half. int64 in and out."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def inputs(rows: int, vocabulary: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, SamplingBatch]:
    """Random logits, and rows of every kind: greedy, plain, each filter, several filters, bans."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.rand(rows, 1, generator=draw) * 8
    logits = (torch.randn(rows, vocabulary, generator=draw) * spread).to(dtype)

    def sometimes(values: torch.Tensor, off: float) -> torch.Tensor:
        return torch.where(torch.rand(rows, generator=draw) < 0.5, values, torch.full_like(values, off))

    counts = torch.randint(0, min(3, vocabulary), (rows,), generator=draw)
    return logits, SamplingBatch(
        temperature=sometimes(0.05 + 2 * torch.rand(rows, generator=draw), 0.0),
        top_k=sometimes(torch.randint(1, vocabulary + 2, (rows,), generator=draw), 0).to(torch.int32),
        top_p=sometimes(torch.rand(rows, generator=draw), 1.0),
        min_p=sometimes(torch.rand(rows, generator=draw) * 0.5, 0.0),
        seed=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=draw),
        position=torch.randint(0, 5000, (rows,), generator=draw),
        banned=torch.randint(0, vocabulary, (int(counts.sum()),), generator=draw, dtype=torch.int32),
        banned_starts=torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))).to(torch.int32),
    )
