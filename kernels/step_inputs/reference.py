"""What does a step need of requests whose state stays on the device?

Each request that runs has a row there: how its tokens are to be drawn, its block table, and the token drawn last. The
host says little: which rows take part in a step, from where, and the tokens it knows. Positions, slots, block tables,
contexts and sampling parameters follow from the rows, and so does a token that the host doesn't know yet.
"""

from dataclasses import dataclass
from typing import Final

import torch

# What precedes the block table in a row: temperature, top_p, min_p (the bits of float32), top_k, the two halves of the
# seed, how many likeliest tokens to report; one is spare, so that the table begins at 32 bytes.
PARAMETERS: Final = 8


@dataclass(frozen=True, slots=True)
class RequestState:
    """``rows`` [R, PARAMETERS + M] int32, for block tables of up to M blocks, and ``last`` [R] int64, tokens."""

    rows: torch.Tensor
    last: torch.Tensor
    block_size: int


@dataclass(frozen=True, slots=True)
class StepRequest:
    """What the host says of a step of S sequences and T tokens.

    ``rows`` [S] int32: of `RequestState`. ``starts`` [S] int32: the position of each sequence's first token in this
    step. ``query_starts`` [S+1] int32: as in `AttentionMetadata`. ``token_ids`` [T] int32: below 0 where it is the
    token that was drawn last for the sequence; token 0 where none could be drawn.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    query_starts: torch.Tensor
    token_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """What `prepare` writes, for S sequences and T tokens.

    ``token_ids``, ``positions`` [T] int32 and ``slots`` [T] int64 are a decoder's; ``context_lengths`` [S] int32 and
    ``block_tables`` [S, M] int32 (as far as the context goes) attention's; ``sampled`` [S] int64 is each sequence's
    last token among the T, ``owners`` [S] int64 the row it came from. The rest [S] are a sampler's, as in
    `SamplingBatch`.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    context_lengths: torch.Tensor
    block_tables: torch.Tensor
    sampled: torch.Tensor
    owners: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor
    top: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor

    @classmethod
    def empty(cls, sequences: int, tokens: int, blocks: int, device: torch.device) -> "StepBuffers":
        """Buffers for ``sequences``, ``tokens`` and tables of ``blocks``."""

        def make(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            token_ids=make(torch.int32, tokens),
            positions=make(torch.int32, tokens),
            slots=make(torch.int64, tokens),
            context_lengths=make(torch.int32, sequences),
            block_tables=make(torch.int32, sequences, blocks),
            sampled=make(torch.int64, sequences),
            owners=make(torch.int64, sequences),
            temperature=make(torch.float32, sequences),
            top_p=make(torch.float32, sequences),
            min_p=make(torch.float32, sequences),
            top_k=make(torch.int32, sequences),
            top=make(torch.int32, sequences),
            seed=make(torch.int64, sequences),
            position=make(torch.int64, sequences),
        )

    def first(self, sequences: int, tokens: int) -> "StepBuffers":
        """The beginning of each, for a step of that size."""
        of_tokens = ("token_ids", "positions", "slots")
        return StepBuffers(
            **{name: getattr(self, name)[: tokens if name in of_tokens else sequences] for name in self.__slots__}
        )


def update(state: RequestState, places: torch.Tensor, values: torch.Tensor) -> None:
    """Set ``state.rows`` at ``places`` [U] int32, counted through all rows, to ``values`` [U] int32; no place twice."""
    state.rows.view(-1)[places.long()] = values


def prepare(state: RequestState, request: StepRequest, buffers: StepBuffers) -> None:
    """Fill ``buffers`` for the step that ``request`` describes.

    A sequence without tokens has a context of its start, and its ``sampled`` is whatever token precedes it, or 0.
    """
    size, rows = state.block_size, request.rows.long()
    counts = request.query_starts.diff()
    owner = torch.repeat_interleave(counts.long())
    places = torch.arange(len(owner), dtype=torch.int32, device=owner.device)
    positions = places - request.query_starts[:-1][owner] + request.starts[owner]
    own = state.rows[rows]
    tables = own[:, PARAMETERS:]
    block = tables[owner, (positions // size).long()]
    buffers.positions.copy_(positions)
    buffers.slots.copy_(block.long() * size + positions % size)
    known = request.token_ids
    buffers.token_ids.copy_(torch.where(known < 0, state.last[rows][owner].int().clamp(min=0), known))
    buffers.context_lengths.copy_(request.starts + counts)
    buffers.block_tables.copy_(tables)
    buffers.sampled.copy_((request.query_starts[1:] - 1).clamp(min=0))
    buffers.owners.copy_(rows)
    buffers.temperature.copy_(own[:, 0].view(torch.float32))
    buffers.top_p.copy_(own[:, 1].view(torch.float32))
    buffers.min_p.copy_(own[:, 2].view(torch.float32))
    buffers.top_k.copy_(own[:, 3])
    buffers.seed.copy_(own[:, 4].long() & 0xFFFFFFFF | own[:, 5].long() << 32)
    buffers.top.copy_(own[:, 6])
    buffers.position.copy_(request.starts + counts)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments of `prepare`."""

    state: RequestState
    request: StepRequest
    buffers: StepBuffers


def inputs(slices: list[tuple[int, int]], block_size: int, seed: int) -> Inputs:
    """A step of sequences given as (start, count) in shuffled rows; some tokens are known on the device only."""
    draw = torch.Generator().manual_seed(seed)
    blocks = max(-(-(start + count) // block_size) for start, count in slices) + 2
    rows = torch.randint(-(2**31), 2**31 - 1, (len(slices) + 3, PARAMETERS + blocks), generator=draw)
    rows[:, PARAMETERS:] %= 1000
    # Bits that are numbers: a NaN isn't equal to itself.
    rows[:, :3] = torch.rand(len(rows), 3, generator=draw).view(torch.int32)
    counts = torch.tensor([0, *(count for _, count in slices)], dtype=torch.int32)
    tokens = torch.randint(0, 500, (int(counts.sum()),), generator=draw, dtype=torch.int32)
    tokens[torch.rand(len(tokens), generator=draw) < 0.3] = -1
    return Inputs(
        state=RequestState(rows.int(), torch.randint(0, 500, (len(rows),), generator=draw), block_size),
        request=StepRequest(
            rows=torch.randperm(len(rows), generator=draw)[: len(slices)].int(),
            starts=torch.tensor([start for start, _ in slices], dtype=torch.int32),
            query_starts=counts.cumsum(0).int(),
            token_ids=tokens,
        ),
        buffers=StepBuffers.empty(len(slices), len(tokens), blocks, torch.device("cpu")),
    )
