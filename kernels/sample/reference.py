"""How is a token drawn from logits?

The definition that every provider reproduces token for token. A row's filters are thresholds on its logits, so that
no sort is needed. The random choice is made in two levels: first one of the vocabulary's chunks of `CHUNK` ids, by what
their kept tokens weigh together, then one of that chunk's tokens. As P(token) = P(chunk) P(token | chunk), this is the
same distribution as that of a choice among all tokens, for V / 128 + 128 random numbers instead of V.

Both choices are the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): the largest log-weight + noise wins. Noise is
a stateless hash of (seed, position, level, index): a seed gives the same token whatever else is in the batch.
"""

from dataclasses import dataclass
from typing import Final

import torch

LOGPROB_TOLERANCE: Final = 2e-4
# A row's margin is low where its likeliest token's probability is less than this above the next one's.
LOW_MARGIN: Final = 0.1
# Token ids to a chunk. The two levels of a draw have noise of their own.
CHUNK: Final = 128
TOKENS: Final = 0
CHUNKS: Final = 1
_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """One entry per row, R rows.

    ``temperature`` [R] float32, 0 meaning greedy (the filters then do nothing); ``top_k`` [R] int32, 0 off; ``top_p``
    [R] float32, 1 off; ``min_p`` [R] float32, 0 off; ``seed`` [R] int64, all 64 bits used; ``position`` [R] int64,
    the index that the token will have in its sequence.

    Row r's logits of the tokens ``edited[edit_starts[r] : edit_starts[r+1]]`` (int32, none twice; starts [R+1] int32)
    are edited: a positive one is divided and any other multiplied by its ``edit_scale`` (float32, 1 off), then its
    ``edit_offset`` (float32, -inf a ban) is added. Where ``mask_row`` [R] int32 isn't -1, it is the row of ``mask``
    [M, ceil(V / 32)] int32 that holds: token t is allowed if bit ``t % 32`` of word ``t // 32`` is set. ``top`` [R]
    int32 is how many of the likeliest tokens to report, and ``width`` is none of them above: the K of `Samples`, known
    without asking the device.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    edited: torch.Tensor
    edit_starts: torch.Tensor
    edit_scale: torch.Tensor
    edit_offset: torch.Tensor
    mask: torch.Tensor
    mask_row: torch.Tensor
    top: torch.Tensor
    width: int


@dataclass(frozen=True, slots=True)
class Samples:
    """``tokens`` [R] int64, -1 where nothing was left to draw; ``logprobs`` and ``entropies`` [R] float32 in nats.

    ``low_margins`` [R] int32 are 1 where the two likeliest tokens' probabilities are less than `LOW_MARGIN` apart.

    ``top_tokens`` [R, K] int32 and ``top_logprobs`` [R, K] float32 are the likeliest tokens, as `likeliest` gives them;
    K is the batch's ``width``. All but ``tokens`` is of the model's own distribution: before edits, mask,
    temperature and filters.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    low_margins: torch.Tensor
    top_tokens: torch.Tensor
    top_logprobs: torch.Tensor


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """Draw one token per row of logits [R, V] (float32 or bfloat16).

    In order: edits, in float32; the mask; if no logit above -inf is left, the token is -1. Greedy takes the largest
    logit, of equal ones the smallest id. Otherwise ``z = (logit - largest) / temperature``; ``top_k`` keeps what is not
    below the k-th largest; ``top_p`` keeps a token if those above it hold less than ``top_p`` of the mass that top_k
    kept; ``min_p`` keeps ``exp(z) >= min_p``; equal logits share their fate. Of the chunks, the one with the largest
    ``log(sum(exp(z))) + noise`` over what is kept is drawn, and of its kept tokens the one with the largest
    ``z + noise``.
    """
    rows, width = logits.shape[0], batch.width
    tokens = torch.full((rows,), -1, dtype=torch.int64)
    logprobs = torch.full((rows,), float("-inf"))
    entropies = torch.empty(rows, dtype=torch.float32)
    low_margins = torch.empty(rows, dtype=torch.int32)
    top_tokens = torch.full((rows, width), -1, dtype=torch.int32)
    top_logprobs = torch.full((rows, width), float("-inf"))
    for row in range(rows):
        own = logits[row].double().log_softmax(-1)
        entropies[row] = -(own.exp() * own).nansum()
        low_margins[row] = margin(own) < LOW_MARGIN
        top = int(batch.top[row])
        top_tokens[row, :top], top_logprobs[row, :top] = likeliest(own, top)
        left = _masked(_edited(logits[row].float(), batch, row), batch, row).double()
        if (left > float("-inf")).any():
            token = _draw(left, batch, row) if batch.temperature[row] > 0 else int(left.argmax())
            tokens[row], logprobs[row] = token, own[token]
    results = (tokens, logprobs, entropies, low_margins, top_tokens, top_logprobs)
    return Samples(*(result.to(logits.device) for result in results))


def margin(logprobs: torch.Tensor) -> float:
    """By how much the likeliest token's probability is above the next one's, of a row's log-probabilities."""
    first, second = torch.nn.functional.pad(logprobs.exp(), (0, 1)).topk(2).values.tolist()
    return float(first - second)


def likeliest(logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids [count] int32 and log-probabilities [count] float32 of a row's likeliest tokens, the likeliest first.

    Of equal ones the smaller id goes first; where the row has no more tokens above -inf, -1 and -inf.
    """
    order = logprobs.sort(descending=True, stable=True)
    tokens = torch.full((count,), -1, dtype=torch.int32, device=logprobs.device)
    values = torch.full((count,), float("-inf"), device=logprobs.device)
    found = min(count, int((logprobs > float("-inf")).sum()))
    tokens[:found], values[:found] = order.indices[:found].int(), order.values[:found].float()
    return tokens, values


def _edited(logits: torch.Tensor, batch: SamplingBatch, row: int) -> torch.Tensor:
    begin, end = batch.edit_starts[row : row + 2].tolist()
    tokens, scale, offset = batch.edited[begin:end].long(), batch.edit_scale[begin:end], batch.edit_offset[begin:end]
    old = logits[tokens]
    new = torch.where(old > 0, old / scale, old * scale) + offset
    # A ban holds for broken logits too: of these, inf - inf would be NaN.
    return logits.clone().index_copy_(0, tokens, new.masked_fill(offset == float("-inf"), float("-inf")))


def _masked(logits: torch.Tensor, batch: SamplingBatch, row: int) -> torch.Tensor:
    if batch.mask_row[row] < 0:
        return logits
    ids = torch.arange(logits.shape[0], device=logits.device)
    allowed = batch.mask[batch.mask_row[row]][ids // 32] >> (ids % 32) & 1
    return logits.masked_fill(allowed == 0, float("-inf"))


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
    seed, position = int(batch.seed[row]), int(batch.position[row])
    scores = z.masked_fill(~kept, float("-inf"))
    weights = torch.nn.functional.pad(scores, (0, -len(z) % CHUNK), value=float("-inf")).view(-1, CHUNK).logsumexp(-1)
    first = CHUNK * int((weights + gumbel(seed, position, CHUNKS, len(weights), z.device)).argmax())
    scores += gumbel(seed, position, TOKENS, len(z), z.device)
    return first + int(scores[first : first + CHUNK].argmax())


def gumbel(seed: int, position: int, level: int, size: int, device: torch.device) -> torch.Tensor:
    """The noise of a level's indices 0 to ``size - 1``: float64 [size], ``-log(-log1p(-v))`` for uniform ``v``.

    ``v`` has 32 bits and small values are the fine-grained ones: they make the large noise that decides.
    """
    key = _mix(torch.tensor(seed & _MASK, device=device))
    key = _mix(key ^ (seed >> 32 & _MASK))
    key = _mix(key ^ (position & _MASK))
    key = _mix(key ^ level)
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
    """Random logits, and rows of every kind: greedy, plain, each filter, several filters, edits, masks, likeliest."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.rand(rows, 1, generator=draw) * 8
    logits = (torch.randn(rows, vocabulary, generator=draw) * spread).to(dtype)

    def sometimes(values: torch.Tensor, off: float) -> torch.Tensor:
        return torch.where(torch.rand(values.shape, generator=draw) < 0.5, values, torch.full_like(values, off))

    counts = sometimes(torch.randint(0, min(50, vocabulary) + 1, (rows,), generator=draw), 0)
    edited = [torch.randperm(vocabulary, generator=draw)[:count] for count in counts.tolist()]
    edits = int(counts.sum())
    offset = 2 * torch.randn(edits, generator=draw)
    top = sometimes(torch.randint(1, 25, (rows,), generator=draw), 0).to(torch.int32)
    return logits, SamplingBatch(
        temperature=sometimes(0.05 + 2 * torch.rand(rows, generator=draw), 0.0),
        top_k=sometimes(torch.randint(1, vocabulary + 2, (rows,), generator=draw), 0).to(torch.int32),
        top_p=sometimes(torch.rand(rows, generator=draw), 1.0),
        min_p=sometimes(torch.rand(rows, generator=draw) * 0.5, 0.0),
        seed=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=draw),
        position=torch.randint(0, 5000, (rows,), generator=draw),
        edited=torch.cat(edited).to(torch.int32),
        edit_starts=torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))).to(torch.int32),
        edit_scale=sometimes(0.5 + torch.rand(edits, generator=draw), 1.0),
        edit_offset=sometimes(torch.where(torch.rand(edits, generator=draw) < 0.3, float("-inf"), offset), 0.0),
        mask=_random_masks(vocabulary, draw),
        mask_row=sometimes(torch.randint(0, 4, (rows,), generator=draw), -1).to(torch.int32),
        top=top,
        width=int(top.max()),
    )


def _random_masks(vocabulary: int, draw: torch.Generator) -> torch.Tensor:
    """Four of them: nothing is allowed, a few tokens, half of them, and long stretches with little between them."""
    words = (vocabulary + 31) // 32
    bits = torch.rand(4, words * 32, generator=draw) < torch.tensor([[0.0], [2 / vocabulary], [0.5], [0.5]])
    stretches = torch.randint(-1, 2, (words,), generator=draw).repeat_interleave(32)
    bits[3] = (stretches == 1) | (bits[3] & (stretches == 0))
    return (bits.view(4, words, 32) << torch.arange(32)).sum(-1).to(torch.int32)
