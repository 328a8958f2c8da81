# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
"""How do sequences with one query token attend on a GPU?

The work is a list of units: every `UNIT` tokens of context of every KV head of every sequence. Each program gets an
equal, contiguous share of that list (stream-K: LeanAttention, Sanovar et al. 2024), so that neither the grid nor the
balance depends on lengths. Within its share a program goes from segment to segment, a segment being what it has of one
KV head of one sequence; all query heads of the KV head are the rows of one tile. What it has of a segment that other
programs share, at most two of its segments, it leaves to `combine`.
"""

import triton
import triton.language as tl

from kernels.tile import dot

# Tokens of context in a unit of work.
UNIT = tl.constexpr(64)
# Below any score, yet finite: a row that has seen nothing so far needs no special case.
LOWEST = tl.constexpr(-1e30)
_CHUNK = tl.constexpr(128)
_PARTS = tl.constexpr(32)


@triton.jit
def owner(index, firsts, starts, sequences, DIVISOR: tl.constexpr):
    """The last sequence whose first item is at most ``index``.

    Its first item is ``firsts[s]``, with a ``DIVISOR`` also ``starts[s] // DIVISOR`` on. One pass over all of them: a
    binary search would wait for memory ten times.
    """
    found = tl.zeros([_CHUNK], tl.int32)
    for chunk in range(0, sequences, _CHUNK):
        s = chunk + tl.arange(0, _CHUNK)
        first = tl.load(firsts + s, s < sequences, 0)
        if DIVISOR > 0:
            first += tl.load(starts + s, s < sequences, 0) // DIVISOR
        found += ((first <= index) & (s < sequences)).to(tl.int32)
    return tl.sum(found) - 1


@triton.jit
def share(program, units, PROGRAMS: tl.constexpr):
    """The first unit of a program's share."""
    return program * (units // PROGRAMS) + tl.minimum(program, units % PROGRAMS)


@triton.jit
def place(tokens, end, table, BLOCK_SIZE: tl.constexpr):
    """The blocks in which tokens below ``end`` lie."""
    return tl.load(table + tokens // BLOCK_SIZE, tokens < end, 0)


@triton.jit
def inside(rows, columns, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Which elements of a tile to load: all columns where none is padding."""
    mask = rows[:, None]
    if WIDTH < PADDED:
        mask = mask & (columns < WIDTH)[None, :]
    return mask


@triton.jit
def _float8(x):
    """The low bytes of integers as e4m3."""
    return x.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def decode(
    program,
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
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    OPERAND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All of a program's share; ``ROWS`` and ``COLUMNS`` are ``GROUP`` and ``DIM`` padded.

    Float8 values are loaded two components at a time: matrices of 16-bit elements can be read transposed from shared
    memory, bytes only one by one. Even and odd components then have sums of their own.
    """
    r = tl.arange(0, ROWS)
    d = tl.arange(0, COLUMNS)
    pair = tl.arange(0, COLUMNS // 2)
    PAIRED: tl.constexpr = value.dtype.element_ty == tl.float8e4nv
    wanted = (r < GROUP)[:, None] & (d < DIM)[None, :]
    at = r[:, None] * DIM + d[None, :]
    units = tl.load(plan + sequences) * KV_HEADS
    unit = share(program, units, PROGRAMS)
    last = share(program + 1, units, PROGRAMS)
    while unit < last:
        s = owner(unit // KV_HEADS, plan, starts, sequences, 0)
        before = tl.load(plan + s)
        length = tl.load(plan + s + 1) - before
        head = (unit - before * KV_HEADS) // length
        first = (unit - before * KV_HEADS) % length
        stop = tl.minimum(length, first + last - unit)
        row = tl.load(starts + s).to(tl.int64)
        context = tl.load(contexts + s)
        low = tl.where(window > 0, tl.maximum(context - window, 0), 0)
        base = low // UNIT * UNIT
        end = tl.minimum(context, base + stop * UNIT)
        table = tables + s.to(tl.int64) * table_stride
        keys = key + head * head_stride
        values = value + head * head_stride

        q = tl.load(query + row * query_stride + head * GROUP * DIM + at, wanted, 0.0).to(OPERAND)
        peak = tl.full([ROWS], LOWEST, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        if PAIRED:
            sums = tl.zeros([ROWS, COLUMNS // 2], tl.float32)
            odd_sums = tl.zeros([ROWS, COLUMNS // 2], tl.float32)
        else:
            sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        n = base + first * UNIT + tl.arange(0, TOKENS)
        blocks = place(n, end, table, BLOCK_SIZE)
        for start in tl.range(base + first * UNIT, end, TOKENS, num_stages=STAGES):
            n = start + tl.arange(0, TOKENS)
            seen = (n < end) & (n >= low)
            lies = blocks.to(tl.int64) * block_stride + n % BLOCK_SIZE * token_stride
            k = tl.load(keys + lies[:, None] + d[None, :], inside(seen, d, DIM, COLUMNS), 0.0)
            if PAIRED:
                halves = values.to(tl.pointer_type(tl.int16)) + (lies // 2)[:, None] + pair[None, :]
                v = tl.load(halves, inside(seen, pair, DIM // 2, COLUMNS // 2), 0)
            else:
                v = tl.load(values + lies[:, None] + d[None, :], inside(seen, d, DIM, COLUMNS), 0.0)
            # Those of the next tile, so that its loads needn't wait for them.
            blocks = place(n + TOKENS, end, table, BLOCK_SIZE)
            scores = dot(q, tl.trans(k.to(OPERAND)), tl.zeros([ROWS, TOKENS], tl.float32))
            scores = tl.where(seen[None, :], scores * scale, float("-inf"))
            top = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp2(scores - top[:, None])
            shrink = tl.exp2(peak - top)
            total = total * shrink + tl.sum(weights, 1)
            w = weights.to(OPERAND)
            if PAIRED:
                sums = dot(w, _float8(v).to(OPERAND), sums * shrink[:, None])
                odd_sums = dot(w, _float8(v >> 8).to(OPERAND), odd_sums * shrink[:, None])
            else:
                sums = dot(w, v.to(OPERAND), sums * shrink[:, None])
            peak = top

        if PAIRED:
            sums = tl.interleave(sums, odd_sums)
        result = sums / total[:, None]
        if stop - first == length:
            target = out + row * KV_HEADS * GROUP * DIM + head * GROUP * DIM
            tl.store(target + at, result.to(out.dtype.element_ty), wanted)
        else:
            # Slot 1 is for a segment that goes on in the next share, slot 0 for one that began in an earlier one.
            slot = 2 * program + (first == 0).to(tl.int32)
            tl.store(partial + slot * GROUP * DIM + at, result, wanted)
            tl.store(peaks + slot * GROUP + r, peak + tl.log2(total), r < GROUP)
        unit += stop - first


@triton.jit(do_not_specialize=["sequences"])
def combine(
    out,
    partial,
    peaks,
    starts,
    plan,
    sequences,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PROGRAMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """What several programs have of one query head; the grid is [sequences, heads]."""
    s = tl.program_id(0)
    head = tl.program_id(1) // GROUP
    r = tl.program_id(1) % GROUP
    before = tl.load(plan + s)
    length = tl.load(plan + s + 1) - before
    units = tl.load(plan + sequences) * KV_HEADS
    first = _sharer(before * KV_HEADS + head * length, units, PROGRAMS)
    last = _sharer(before * KV_HEADS + head * length + length - 1, units, PROGRAMS)
    if (length > 0) & (first < last):
        d = tl.arange(0, COLUMNS)
        peak = LOWEST
        total = 0.0
        sums = tl.zeros([COLUMNS], tl.float32)
        for chunk in range(first, last + 1, _PARTS):
            p = chunk + tl.arange(0, _PARTS)
            slot = 2 * p + (p == first).to(tl.int32)
            part_peaks = tl.load(peaks + slot * GROUP + r, p <= last, float("-inf"))
            wanted = (p <= last)[:, None] & (d < DIM)[None, :]
            parts = tl.load(partial + (slot * GROUP + r)[:, None] * DIM + d[None, :], wanted, 0.0)
            top = tl.maximum(peak, tl.max(part_peaks, 0))
            weights = tl.exp2(part_peaks - top)
            shrink = tl.exp2(peak - top)
            total = total * shrink + tl.sum(weights, 0)
            sums = sums * shrink + tl.sum(weights[:, None] * parts, 0)
            peak = top
        row = tl.load(starts + s).to(tl.int64)
        target = out + (row * KV_HEADS * GROUP + tl.program_id(1)) * DIM
        tl.store(target + d, (sums / total).to(out.dtype.element_ty), d < DIM)


@triton.jit
def _sharer(unit, units, PROGRAMS: tl.constexpr):
    """The program in whose share a unit is."""
    size = units // PROGRAMS
    larger = units % PROGRAMS  # so many shares, the first ones, have one unit more
    if unit < larger * (size + 1):
        program = unit // (size + 1)
    else:
        program = larger + (unit - larger * (size + 1)) // tl.maximum(size, 1)
    return program
