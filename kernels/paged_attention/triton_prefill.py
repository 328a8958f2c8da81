# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
"""How do sequences with several query tokens attend on a GPU?

A tile is so many query tokens that with all query heads of a KV head they make ``ROWS`` rows, against which the keys
and values of that KV head pass: FlashAttention-2 (Dao 2023).
"""

import triton
import triton.language as tl

from kernels.paged_attention.triton_decode import LOWEST, inside, owner, place
from kernels.tile import dot


@triton.jit
def prefill(
    program,
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
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SINGLE: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The tile of one KV head that ``program`` stands for; tiles that see most come first.

    The tiles of sequence s, the i-th with more than one query token, begin at query_starts[s] // tokens of a tile + i.
    A ``SINGLE`` sequence may have any number of query tokens.
    """
    QUERIES: tl.constexpr = ROWS // GROUP
    head = program % KV_HEADS
    if SINGLE:
        s = 0
        tile = tl.load(starts + 1) // QUERIES - program // KV_HEADS
        begins = 0
    else:
        befores = plan + sequences + 1
        most = tl.load(starts + sequences) // QUERIES + tl.load(befores + sequences)
        tile = most - 1 - program // KV_HEADS
        s = 0
        begins = 0
        if tile >= 0:
            s = owner(tile, befores, starts, sequences, QUERIES)
            begins = tl.load(starts + s) // QUERIES + tl.load(befores + s)
    start = tl.load(starts + s)
    count = tl.load(starts + s + 1) - start
    skipped = (tile - begins) * QUERIES  # of the sequence's query tokens
    if (tile >= 0) & (skipped < count) & (SINGLE | (count > 1)):
        position = tl.load(contexts + s) - count + skipped
        end = position + tl.minimum(QUERIES, count - skipped)
        low = tl.where(window > 0, tl.maximum(position - window + 1, 0), 0)
        table = tables + tl.cast(s, tl.int64) * table_stride
        keys = key + head * head_stride
        values = value + head * head_stride

        r = tl.arange(0, ROWS)
        d = tl.arange(0, COLUMNS)
        own = tl.minimum(position + r // GROUP, end - 1)  # a row too many is the last one again
        wanted = (r < (end - position) * GROUP)[:, None] & (d < DIM)[None, :]
        row = (start + skipped + r // GROUP).to(tl.int64)
        columns = (head * GROUP + r % GROUP)[:, None] * DIM + d[None, :]
        q = tl.load(query + row[:, None] * query_stride + columns, wanted, 0.0).to(OPERAND)
        peak = tl.full([ROWS], LOWEST, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        first = low // TOKENS * TOKENS
        blocks = place(first + tl.arange(0, TOKENS), end, table, BLOCK_SIZE)
        for other in tl.range(first, end, TOKENS, num_stages=STAGES):
            n = other + tl.arange(0, TOKENS)
            lies = (blocks.to(tl.int64) * block_stride + n % BLOCK_SIZE * token_stride)[:, None] + d[None, :]
            k = tl.load(keys + lies, inside(n < end, d, DIM, COLUMNS), 0.0)
            v = tl.load(values + lies, inside(n < end, d, DIM, COLUMNS), 0.0)
            # Those of the next tile, so that its loads needn't wait for them.
            blocks = place(n + TOKENS, end, table, BLOCK_SIZE)
            scores = dot(q, tl.trans(k.to(OPERAND)), tl.zeros([ROWS, TOKENS], tl.float32))
            # Only on the diagonal and at the window's edge is there something to hide.
            if (other + TOKENS > position + 1) | ((window > 0) & (other < end - window)):
                seen = n[None, :] <= own[:, None]
                seen = seen & ((window <= 0) | (n[None, :] > own[:, None] - window))
                scores = tl.where(seen, scores, float("-inf"))
            top = tl.maximum(peak, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - top[:, None])
            shrink = tl.exp2(peak - top)
            total = total * shrink + tl.sum(weights, 1)
            sums = dot(weights.to(OPERAND), v.to(OPERAND), sums * shrink[:, None])
            peak = top

        target = out + row[:, None] * (KV_HEADS * GROUP * DIM) + columns
        tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), wanted)
