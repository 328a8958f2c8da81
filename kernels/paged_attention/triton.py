"""How is paged attention computed on a GPU?

One launch for a mixed batch, and a small one that combines what several programs have of one sequence. Neither grid
depends on lengths.

Decode (`triton_decode`) is bound by memory: every key and value is read once, for two floating-point operations a
component and query head. To keep 4.3 TB/s busy at 0.8 us latency, each of 132 multiprocessors needs 26 KB under way;
three programs with 72 KB of shared memory each (tiles of 64 tokens in bfloat16 with 128 components: 16 KB of keys, as
many of values, twice) have at least 96 KB, and while one waits for its next sequence the others go on. A third of the
registers is 168 a thread. A multiprocessor has 1,700 cycles for a tile (32 KB); its instructions take 500 of them in
bfloat16, 950 in float8, counted in what Triton 3.9 compiles for sm_90.

Prefill (`triton_prefill`) is bound by the tensor cores: 2,048 cycles for 128 rows against 128 keys at head_dim 128. Two
warp groups, 64 rows each, take turns: one computes exponentials while the other multiplies. Three tiles of keys and of
values make 224 KB with the queries, all that Hopper has; there is one program a multiprocessor. Ampere has less, and
gets tiles of 32.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import torch
import triton
import triton.language as tl

from kernels import device
from kernels.kv_cache import LayerCache
from kernels.paged_attention.reference import AttentionMetadata
from kernels.paged_attention.triton_decode import UNIT, combine, decode
from kernels.paged_attention.triton_prefill import prefill
from kernels.tile import INTERPRETED, LOG2E, next_power_of_2

# Sequences at a time in `_make_plan`.
_BLOCK: Final = 1024
# Shared memory that one block may have on Hopper.
_HOPPERS: Final = 227 * 1024
# A decode tile's keys, or values; what a program that only decodes takes of shared memory; registers for three of them.
_DECODE_BYTES: Final = 16 * 1024
_DECODE_SHARED: Final = 75 * 1024
_DECODE_REGISTERS: Final = 168


def paged_attention(
    query: torch.Tensor, cache: LayerCache, batch: AttentionMetadata, *, window: int, scale: float
) -> torch.Tensor:
    """`kernels.paged_attention.reference.paged_attention` for a `kernels.kv_cache.token_major` cache.

    Products take bfloat16 operands, float16 with a float8 cache. ``scale`` must be positive. Rows of query tokens that
    no sequence owns are left as they were allocated. Raises ValueError for a cache that lies otherwise.
    """
    key = cache.key.transpose(2, 3)
    if key.stride() != cache.value.stride() or key.stride(3) != 1:
        raise ValueError("paged attention on a GPU needs a token-major cache: kernels.kv_cache.token_major makes one")
    tokens, sequences = query.shape[0], batch.context_lengths.shape[0]
    dim, kv_heads = cache.head_dim, cache.kv_heads
    group = query.shape[1] // (kv_heads * dim)
    prefills = not batch.decodes_only
    decodes = sequences > 1 or not prefills
    shape: dict[str, Any] = {"KV_HEADS": kv_heads, "GROUP": group, "DIM": dim, "COLUMNS": _padded(dim)}
    sizes = _sizes(group, dim, key.dtype, batch.decodes_only)
    programs = _programs(query, batch.decodes_only) if decodes else 0
    tiles = kv_heads * (tokens // (sizes["PREFILL_ROWS"] // group) + sequences) if prefills else 0
    steps = batch.plans.get(window)
    if steps is None:
        steps = _plan(batch, window)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    partial = torch.empty(programs, 2, group, dim, dtype=torch.float32, device=query.device)
    peaks = torch.empty(programs, 2, group, dtype=torch.float32, device=query.device)
    _attend[(programs + tiles,)](
        query,
        key,
        cache.value,
        out,
        partial,
        peaks,
        batch.block_tables,
        batch.query_starts,
        batch.context_lengths,
        steps,
        query.stride(0),
        *key.stride()[:3],
        batch.block_tables.stride(0),
        sequences,
        window,
        tiles,
        scale * LOG2E.value,
        BLOCK_SIZE=cache.block_size,
        PROGRAMS=programs,
        DECODES=decodes,
        PREFILLS=prefills,
        **shape,
        **sizes,
    )
    if decodes:
        combine[sequences, kv_heads * group](
            out, partial, peaks, batch.query_starts, steps, sequences, PROGRAMS=programs, **shape, num_warps=2
        )
    return out


def plan(batch: AttentionMetadata, windows: Iterable[int]) -> AttentionMetadata:
    """The batch with the plan of each window (`_make_plan`)."""
    return replace(batch, plans={window: _plan(batch, window) for window in windows})


def _plan(batch: AttentionMetadata, window: int) -> torch.Tensor:
    sequences = batch.context_lengths.shape[0]
    result = torch.empty(2, sequences + 1, dtype=torch.int32, device=batch.query_starts.device)
    _make_plan[(1,)](result, batch.query_starts, batch.context_lengths, sequences, window, BLOCK=_BLOCK, num_warps=4)
    return result


def _padded(size: int) -> int:
    return max(16, next_power_of_2(size))


def _sizes(group: int, dim: int, dtype: torch.dtype, decodes_only: bool) -> dict[str, Any]:
    """Tiles by what they take of shared memory and registers; see the module's docstring."""
    columns = _padded(dim)
    wide = dtype == torch.float32
    hopper = _shared_memory() >= _HOPPERS
    rows = 64 if wide or columns > 128 else 128
    # Masks take registers as well.
    tokens = 16 if wide else max(16, min(64, 4096 // columns)) if not hopper else rows if columns == dim else 64
    return {
        # Float8's values are exact in float16, which takes one instruction for two of them.
        "OPERAND": {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}.get(dtype, tl.float16),
        "DECODE_ROWS": _padded(group),
        "DECODE_TOKENS": max(16, _DECODE_BYTES // (max(columns, 128) * dtype.itemsize)),
        "DECODE_STAGES": 3 if columns >= 128 else 4,
        "PREFILL_ROWS": max(rows, next_power_of_2(group)),
        "PREFILL_TOKENS": tokens,
        "PREFILL_STAGES": 3 if columns <= 128 else 2,
        **({"num_warps": 4, "maxnreg": _DECODE_REGISTERS} if decodes_only else {"num_warps": 8}),
    }


def _programs(query: torch.Tensor, decodes_only: bool) -> int:
    """How many decode programs there are: as many as run at once."""
    each = _shared_memory() // _DECODE_SHARED if decodes_only else 1
    return each * device.multiprocessors(query.device)


def _shared_memory() -> int:
    """What one block may have, in bytes."""
    return _HOPPERS if INTERPRETED.value else _shared_memory_of(triton.runtime.driver.active.get_current_device())


@lru_cache
def _shared_memory_of(index: int) -> int:
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


@triton.jit(do_not_specialize=["sequences", "window"])
def _make_plan(plan, starts, contexts, sequences, window, BLOCK: tl.constexpr):
    """Prefix sums over sequences: units of one KV head of those that decode, and how many prefill; [2, S + 1]."""
    units = 0
    prefills = 0
    for first in range(0, sequences, BLOCK):
        s = first + tl.arange(0, BLOCK)
        inside = s < sequences
        count = tl.load(starts + s + 1, inside, 0) - tl.load(starts + s, inside, 0)
        context = tl.load(contexts + s, inside, 0)
        low = tl.where(window > 0, tl.maximum(context - window, 0), 0)
        own = tl.where(count == 1, tl.cdiv(context, UNIT) - low // UNIT, 0)
        several = (count > 1).to(tl.int32)
        tl.store(plan + s, units + tl.cumsum(own, 0) - own, inside)
        tl.store(plan + sequences + 1 + s, prefills + tl.cumsum(several, 0) - several, inside)
        units += tl.sum(own, 0)
        prefills += tl.sum(several, 0)
    tl.store(plan + sequences, units)
    tl.store(plan + 2 * sequences + 1, prefills)


@triton.jit(do_not_specialize=["table_stride", "sequences", "window", "tiles"])
def _attend(
    query,
    key,
    value,
    out,
    partial,
    peaks,
    tables,
    starts,
    contexts,
    plan,
    query_stride,
    block_stride,
    head_stride,
    token_stride,
    table_stride,
    sequences,
    window,
    tiles,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    DECODES: tl.constexpr,
    PREFILLS: tl.constexpr,
    OPERAND: tl.constexpr,
    DECODE_ROWS: tl.constexpr,
    DECODE_TOKENS: tl.constexpr,
    DECODE_STAGES: tl.constexpr,
    PREFILL_ROWS: tl.constexpr,
    PREFILL_TOKENS: tl.constexpr,
    PREFILL_STAGES: tl.constexpr,
):
    index = tl.program_id(0)
    decodes = DECODES  # known while compiling unless there may be both: the other body is left out
    if DECODES and PREFILLS:
        # In turns while there are both, so that one kind waits for memory while the other computes (POD-Attention,
        # Kamath et al. 2024).
        pairs = tl.minimum(PROGRAMS, tiles)
        paired = index < 2 * pairs
        decodes = tl.where(paired, index % 2 == 0, tiles < PROGRAMS)
        index = tl.where(paired, index // 2, index - pairs)
    if decodes:
        decode(
            index,
            query,
            key,
            value,
            out,
            partial,
            peaks,
            tables,
            starts,
            contexts,
            plan,
            query_stride,
            block_stride,
            head_stride,
            token_stride,
            table_stride,
            sequences,
            window,
            scale,
            KV_HEADS,
            GROUP,
            DIM,
            BLOCK_SIZE,
            PROGRAMS,
            OPERAND,
            DECODE_ROWS,
            COLUMNS,
            DECODE_TOKENS,
            DECODE_STAGES,
        )
    else:
        prefill(
            index,
            query,
            key,
            value,
            out,
            tables,
            starts,
            contexts,
            plan,
            query_stride,
            block_stride,
            head_stride,
            token_stride,
            table_stride,
            sequences,
            window,
            scale,
            KV_HEADS,
            GROUP,
            DIM,
            BLOCK_SIZE,
            not DECODES,
            OPERAND,
            PREFILL_ROWS,
            COLUMNS,
            PREFILL_TOKENS,
            PREFILL_STAGES,
        )
