"""How near does attention come to what the card can do?

A step in which each sequence has one token reads the keys and values of all contexts once: beside the copy's speed. A
prompt is beside the matrix product's, and beside what torch has.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.ceilings import Card, rate
from bench.gpu.report import Case, Figure, Skipped
from bench.gpu.shapes import BF16, BLOCK, FP8, FULL, QUICK, Heads
from bench.gpu.timing import Call
from kernels.kv_cache import LayerCache, allocate, bytes_per_block
from kernels.paged_attention import AttentionMetadata, paged_attention, plan

# Where attention moves more bytes than this, it is to reach this share of the copy's speed.
_MUCH: Final = 100e6
_SHARE: Final = 0.85
# Of the best of torch's own.
_PREFILL_SHARE: Final = 0.75
# Of the free memory; the rest is for queries, outputs and their like.
_POOL_SHARE: Final = 0.8
_FILLED_AT_ONCE: Final = 4096


class Pool:
    """KV blocks with random numbers in them, made when first needed, from which sequences get shuffled ones."""

    def __init__(self, card: Card, heads: Heads, dtype: torch.dtype, blocks: int) -> None:
        """Of ``blocks``, or of as many as the card has room for."""
        self._card, self._heads, self._dtype, self._wanted = card, heads, dtype, blocks
        self._cache: LayerCache | None = None
        self._order = torch.empty(0)

    @property
    def cache(self) -> LayerCache:
        if self._cache is None:
            card, heads = self._card, self._heads
            if card.device.type == "cpu" and self._dtype == FP8:
                raise Skipped("float8 caches are for GPUs")
            each = bytes_per_block(heads.kv, heads.dim, BLOCK, self._dtype, card.device)
            blocks = min(self._wanted, int(_POOL_SHARE * card.free()) // each)
            cache = allocate(blocks, heads.kv, heads.dim, BLOCK, self._dtype, card.device)
            for part in (*cache.key.split(_FILLED_AT_ONCE), *cache.value.split(_FILLED_AT_ONCE)):
                part.copy_(torch.randn(part.shape, dtype=BF16, device=card.device))
            self._order = torch.randperm(blocks, device=card.device).int()
            self._cache = cache
        return self._cache

    def tables(self, sequences: int, context: int, index: int) -> torch.Tensor:
        """Block tables [sequences, blocks] int32; those of another ``index`` are of other blocks while there are any.

        Raises:
            Skipped: the pool is too small.
        """
        blocks = self.cache.value.shape[0]
        each = -(-context // BLOCK)
        needed = sequences * each
        if needed > blocks:
            raise Skipped(f"needs {needed:,} blocks of KV, and the card's memory holds {blocks:,}")
        first = index % (blocks // needed) * needed
        return self._order[first : first + needed].view(sequences, each)


def decode_cases(card: Card) -> Iterator[Case]:
    """Attention of steps in which each sequence has one token."""
    sizes = QUICK if card.quick else FULL
    most = sizes.batches[-1] * -(-sizes.contexts[-1] // BLOCK)
    spare = 16 if card.quick else 2**14  # so that small batches get others of their own
    large = sizes.models[1].heads
    pool = Pool(card, large, BF16, max(most, spare))
    for model in sizes.models:
        for context in sizes.contexts:
            for batch in sizes.batches:
                yield _decode_case(card, model.heads, pool, batch, context, "")
    few = sizes.contexts[len(sizes.contexts) // 2]
    blocks = max(sizes.batches[-1] * -(-few // BLOCK), spare)
    for heads, dtype, suffix in ((large, FP8, ", fp8 KV"), (sizes.odd, BF16, "")):
        pool = Pool(card, heads, dtype, blocks)
        for batch in sizes.batches:
            yield _decode_case(card, heads, pool, batch, few, suffix)


def _decode_case(card: Card, heads: Heads, pool: Pool, batch: int, context: int, suffix: str) -> Case:
    title = f"decode attention, {heads.name} heads, {batch} x {_thousands(context)}{suffix}"
    return Case("kernels", title, 4, lambda: [_decode(card, title, heads, pool, batch, context)])


def _decode(card: Card, title: str, heads: Heads, pool: Pool, batch: int, context: int) -> Figure:
    cache = pool.cache
    kv = 2 * batch * context * heads.kv * heads.dim * cache.key.element_size()
    size = kv + 2 * 2 * batch * heads.query * heads.dim
    starts = torch.arange(batch + 1, dtype=torch.int32, device=card.device)
    contexts = torch.full((batch,), context, dtype=torch.int32, device=card.device)

    def make(index: int) -> Call:
        metadata = AttentionMetadata(starts, contexts, pool.tables(batch, context, index), decodes_only=True)
        return _attention(card, heads, cache, metadata, batch)

    timing = card.time(make, size)
    copy = None if card.copy is None else card.copy / 1e9
    target = copy * _SHARE if copy and size > _MUCH else None
    return Figure(title, "GB/s", rate(timing, size / 1e9), copy, target, jitter=timing.jitter)


def _attention(card: Card, heads: Heads, cache: LayerCache, metadata: AttentionMetadata, tokens: int) -> Call:
    """A call of attention with queries as a merged product leaves them; the plan is another's work."""
    width = heads.query * heads.dim
    query = torch.randn(tokens, width + 2 * heads.kv * heads.dim, dtype=BF16, device=card.device)[:, :width]
    scale = heads.dim**-0.5
    return partial(paged_attention, query, cache, plan(metadata, (0,)), window=0, scale=scale)


def prefill_cases(card: Card) -> Iterator[Case]:
    """Attention of steps that consist of one prompt."""
    sizes = QUICK if card.quick else FULL
    heads = sizes.models[1].heads
    pool = Pool(card, heads, BF16, 4 * (sizes.prompts[-1] // BLOCK + 1))
    for tokens in sizes.prompts:
        title = f"prefill attention, {heads.name} heads, {_thousands(tokens)}"
        yield Case("kernels", title, 8, partial(_prefill, card, title, heads, pool, tokens))


def _prefill(card: Card, title: str, heads: Heads, pool: Pool, tokens: int) -> Iterator[Figure]:
    """One sequence of new tokens only: ours, and torch's by two libraries, with as many KV heads as query heads."""
    width = heads.query * heads.dim
    operations = 2 * tokens * (tokens + 1) * width
    size = 2 * tokens * (2 * width + 2 * heads.kv * heads.dim)
    starts = torch.tensor([0, tokens], dtype=torch.int32, device=card.device)
    context = starts[1:].clone()

    def ours(index: int) -> Call:
        metadata = AttentionMetadata(starts, context, pool.tables(1, tokens, index))
        return _attention(card, heads, pool.cache, metadata, tokens)

    def theirs(backend: SDPBackend, index: int) -> Call:
        query, key, value = (
            torch.randn(1, tokens, heads.query, heads.dim, dtype=BF16, device=card.device).transpose(1, 2)
            for _ in range(3)
        )

        def call() -> torch.Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

        return call

    limit = _rate_limit(card, operations, size)
    timing = card.time(ours, size)
    own = rate(timing, operations / 1e12)
    yield Figure(title, "TFLOP/s", own, limit, jitter=timing.jitter)
    best = 0.0
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
        try:
            timing = card.time(partial(theirs, backend), size)
        except RuntimeError as error:  # a build of torch without it, or a shape that it doesn't take
            if card.device.type == "cuda":
                torch.cuda.synchronize()  # raises again if it's worse than that
            print(f"bench: torch has no {name} here: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        figure = Figure(f"{title}, torch's {name}", "TFLOP/s", rate(timing, operations / 1e12), limit)
        best = max(best, figure.value)
        yield replace(figure, jitter=timing.jitter)
    if best:
        yield Figure(f"{title}, beside the best of torch's", "x", [one / best for one in own], None, _PREFILL_SHARE)


def _rate_limit(card: Card, operations: float, size: float) -> float | None:
    floor = card.floor(size, operations)
    return None if floor is None else operations / floor / 1e12


def _thousands(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
