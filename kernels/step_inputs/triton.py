"""A step's inputs on a GPU: one program for each sequence, and one launch, instead of some twenty of torch's.

What it moves is small (block tables: 4 bytes for 16 tokens of context), so that a launch is what it costs.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from kernels import tile  # noqa: F401  (sets Triton up)
from kernels.step_inputs.reference import PARAMETERS, RequestState, StepBuffers, StepRequest

_BLOCK: Final = 256
_PARAMETERS: Final = tl.constexpr(PARAMETERS)


@triton.jit
def _update(rows, places, values, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.load(places + at, inside, 0)
    tl.store(rows + place, tl.load(values + at, inside, 0), inside)


@triton.jit
def _prepare(
    state,
    last,
    rows,
    starts,
    query_starts,
    known,
    token_ids,
    positions,
    slots,
    context_lengths,
    block_tables,
    sampled,
    owners,
    temperature,
    top_p,
    min_p,
    top_k,
    top,
    seed,
    position,
    row_stride,
    table_stride,
    block_size,
    BLOCK: tl.constexpr,
):
    s = tl.program_id(0)
    row = tl.load(rows + s).to(tl.int64)
    begin, end = tl.load(query_starts + s), tl.load(query_starts + s + 1)
    start = tl.load(starts + s)
    context = start + end - begin
    own = state + row * row_stride
    tl.store(context_lengths + s, context)
    tl.store(position + s, context.to(tl.int64))
    tl.store(sampled + s, tl.maximum(end - 1, 0).to(tl.int64))
    tl.store(owners + s, row)
    tl.store(temperature + s, tl.load(own).to(tl.float32, bitcast=True))
    tl.store(top_p + s, tl.load(own + 1).to(tl.float32, bitcast=True))
    tl.store(min_p + s, tl.load(own + 2).to(tl.float32, bitcast=True))
    tl.store(top_k + s, tl.load(own + 3))
    low = tl.load(own + 4).to(tl.int64) & 0xFFFFFFFF
    tl.store(seed + s, (tl.load(own + 5).to(tl.int64) << 32) | low)
    tl.store(top + s, tl.load(own + 6))
    table = own + _PARAMETERS
    lanes = tl.arange(0, BLOCK)
    for first in range(0, tl.cdiv(context, block_size), BLOCK):
        inside = first + lanes < tl.cdiv(context, block_size)
        to = block_tables + s * table_stride.to(tl.int64) + first + lanes
        tl.store(to, tl.load(table + first + lanes, inside, 0), inside)
    drawn = tl.maximum(tl.load(last + row), 0).to(tl.int32)
    for first in range(begin, end, BLOCK):
        at = first + lanes
        inside = at < end
        where = start + at - begin
        block = tl.load(table + where // block_size, inside, 0).to(tl.int64)
        token = tl.load(known + at, inside, 0)
        tl.store(token_ids + at, tl.where(token < 0, drawn, token), inside)
        tl.store(positions + at, where, inside)
        tl.store(slots + at, block * block_size + where % block_size, inside)


def update(state: RequestState, places: torch.Tensor, values: torch.Tensor) -> None:
    """`kernels.step_inputs.reference.update`."""
    count = len(places)
    if count:
        _update[(triton.cdiv(count, _BLOCK),)](state.rows, places, values, count, BLOCK=_BLOCK, num_warps=4)


def prepare(state: RequestState, request: StepRequest, buffers: StepBuffers) -> None:
    """`kernels.step_inputs.reference.prepare`; of block tables, what is past the context is left as it was."""
    _prepare[(len(request.rows),)](
        state.rows,
        state.last,
        request.rows,
        request.starts,
        request.query_starts,
        request.token_ids,
        *(getattr(buffers, name) for name in StepBuffers.__slots__),
        state.rows.stride(0),
        buffers.block_tables.stride(0),
        state.block_size,
        BLOCK=_BLOCK,
        num_warps=4,
    )
