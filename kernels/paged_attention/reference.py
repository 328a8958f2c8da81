"""What is paged attention? Causal attention of a mixed batch over keys and values that lie in blocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from kernels.kv_cache import LayerCache, allocate, token_major

TOLERANCE: Final = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the sequences of a flattened batch lie; S sequences, T query tokens in all.

    ``query_starts`` [S+1] int32: sequence s owns query tokens query_starts[s] to query_starts[s+1], which are the
    last ones of its context. ``context_lengths`` [S] int32: tokens attended to, the new ones included.
    ``block_tables`` [S, most blocks] int32: the blocks of each sequence in order; the rest of a row is not read.

    ``decodes_only``: the host knows that no sequence has more than one query token (T == S). ``plans``: what
    `kernels.paged_attention.plan` has worked out ahead of the layers, by window.
    """

    query_starts: torch.Tensor
    context_lengths: torch.Tensor
    block_tables: torch.Tensor
    decodes_only: bool = False
    plans: Mapping[int, torch.Tensor] = field(default_factory=dict)


def paged_attention(
    query: torch.Tensor, cache: LayerCache, batch: AttentionMetadata, *, window: int, scale: float
) -> torch.Tensor:
    """Attention of query [T, heads * head_dim] (rows may be strided) -> [T, heads * head_dim].

    Query head h reads KV head ``h // (heads / KV heads)``. A token attends to the ``window`` last tokens up to
    itself, all of them if ``window`` is 0. Softmax in float32.
    """
    dim, kv_heads = cache.head_dim, cache.kv_heads
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    starts = batch.query_starts.tolist()
    for s, context in enumerate(batch.context_lengths.tolist()):
        rows = slice(starts[s], starts[s + 1])
        blocks = batch.block_tables[s, : -(-context // cache.block_size)].long()
        key = cache.key[blocks, ..., : cache.block_size].float().permute(1, 0, 3, 2).reshape(kv_heads, -1, dim)
        value = cache.value[blocks, ..., :dim].float().permute(1, 0, 2, 3).reshape(kv_heads, -1, dim)
        q = (
            query[rows].reshape(-1, kv_heads, query.shape[1] // (kv_heads * dim), dim).permute(1, 2, 0, 3).float()
            * scale
        )
        scores = q @ key[:, None, :context].transpose(-1, -2)
        position = torch.arange(context - q.shape[2], context, device=query.device)[:, None]
        other = torch.arange(context, device=query.device)[None, :]
        hidden = other > position
        if window:
            hidden |= other <= position - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        result = weights @ value[:, None, :context]
        out[rows] = result.permute(2, 0, 1, 3).flatten(1).to(out.dtype)
    return out


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments of `paged_attention`."""

    query: torch.Tensor
    cache: LayerCache
    batch: AttentionMetadata


def inputs(
    lengths: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    seed: int,
    cache_dtype: torch.dtype | None = None,
) -> Inputs:
    """A batch of sequences given as (query tokens, context), in shuffled blocks; what no sequence owns is NaN.

    With a ``cache_dtype``, which may be float8, the cache lies as on a GPU.
    """
    draw = torch.Generator().manual_seed(seed)
    needs = [-(-context // block_size) for _, context in lengths]
    make = token_major if cache_dtype else allocate
    cache = make(sum(needs) + 3, kv_heads, head_dim, block_size, cache_dtype or dtype, torch.device("cpu"))
    cache.key.copy_(torch.tensor(float("nan")))
    cache.value.copy_(torch.tensor(float("nan")))
    order = torch.randperm(sum(needs) + 3, generator=draw).tolist()
    tables = torch.full((len(lengths), max(needs)), -1, dtype=torch.int32)
    for s, (_, context) in enumerate(lengths):
        for i in range(needs[s]):
            block = tables[s, i] = order.pop()
            used = min(block_size, context - i * block_size)
            cache.key[block, :, :, :used] = torch.randn(kv_heads, head_dim, used, generator=draw).to(cache.key.dtype)
            cache.value[block, :, :used, :head_dim] = torch.randn(kv_heads, used, head_dim, generator=draw).to(
                cache.key.dtype
            )
    counts = torch.tensor([0] + [query for query, _ in lengths])
    query = torch.randn(int(counts.sum()), (heads + 2 * kv_heads) * head_dim, generator=draw).to(dtype)
    batch = AttentionMetadata(
        query_starts=counts.cumsum(0).to(torch.int32),
        context_lengths=torch.tensor([context for _, context in lengths], dtype=torch.int32),
        block_tables=tables,
    )
    return Inputs(query[:, : heads * head_dim], cache, batch)
