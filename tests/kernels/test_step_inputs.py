"""Are a step's inputs, made on the device, what the runner makes on the host?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.step_inputs import reference, triton

SLICES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=5).filter(
    lambda slices: any(count for _, count in slices)
)


def check(slices: list[tuple[int, int]], block_size: int, seed: int) -> None:
    ours, judge = (reference.inputs(slices, block_size, seed) for _ in range(2))
    reference.prepare(judge.state, judge.request, judge.buffers)
    triton.prepare(ours.state, ours.request, ours.buffers)
    for name in reference.StepBuffers.__slots__:
        actual, expected = getattr(ours.buffers, name), getattr(judge.buffers, name)
        if name == "block_tables":
            for row, (start, count) in enumerate(slices):
                used = -(-(start + count) // block_size)
                assert torch.equal(actual[row, :used], expected[row, :used])
        else:
            assert torch.equal(actual, expected), name


@settings(deadline=None, max_examples=25)
@given(slices=SLICES, block_size=st.sampled_from((1, 3, 16)), seed=st.integers(0, 99))
def test_triton_is_the_reference(slices: list[tuple[int, int]], block_size: int, seed: int) -> None:
    check(slices, block_size, seed)


def test_more_tokens_and_blocks_than_a_program_takes_at_a_time() -> None:
    check([(300, 1), (5, 700), (0, 256)], 1, 3)


def test_what_is_said_of_one_sequence() -> None:
    made = reference.inputs([(6, 3)], 4, 1)
    row = int(made.request.rows[0])
    seed = -3
    made.state.rows[row, 3:7] = torch.tensor([7, seed & 0xFFFFFFFF, seed >> 32, 5]).int()
    made.state.rows[row, 0] = torch.tensor(0.75).view(torch.int32)
    made.state.rows[row, reference.PARAMETERS :] = torch.tensor([40, 41, 42, 0, 0])
    made.state.last[row] = 99
    made.request.token_ids.copy_(torch.tensor([11, 12, -1]))
    reference.prepare(made.state, made.request, made.buffers)
    buffers = made.buffers
    assert buffers.token_ids.tolist() == [11, 12, 99]
    assert buffers.positions.tolist() == [6, 7, 8]
    assert buffers.slots.tolist() == [41 * 4 + 2, 41 * 4 + 3, 42 * 4]
    assert buffers.context_lengths.tolist() == buffers.position.tolist() == [9]
    assert (buffers.sampled.tolist(), buffers.owners.tolist()) == ([2], [row])
    assert (buffers.top_k.tolist(), buffers.top.tolist(), buffers.seed.tolist()) == ([7], [5], [seed])
    assert buffers.temperature.tolist() == [0.75]
    made.state.last[row] = -1
    reference.prepare(made.state, made.request, made.buffers)
    assert buffers.token_ids.tolist() == [11, 12, 0]


@pytest.mark.parametrize("count", [0, 1, 300])
def test_updates(count: int) -> None:
    ours, judge = (reference.inputs([(9, 1)] * 40, 4, 2) for _ in range(2))
    draw = torch.Generator().manual_seed(count)
    places = torch.randperm(ours.state.rows.numel(), generator=draw)[:count].int()
    values = torch.randint(0, 1000, (count,), generator=draw, dtype=torch.int32)
    reference.update(judge.state, places, values)
    triton.update(ours.state, places, values)
    assert torch.equal(ours.state.rows, judge.state.rows)
