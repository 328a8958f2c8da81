"""Does the GPU's provider draw the tokens that the reference defines?"""

from dataclasses import fields, replace

import pytest
import torch

from kernels import device
from kernels.sample import Samples, SamplingBatch, reference, sample
from tests.kernels.compare import assert_same_samples, both_dtypes
from tests.kernels.test_sample import int32, masks_of, rows

provider = pytest.importorskip("kernels.sample.triton")
INFINITE = float("inf")


def drawn_by(gpu: torch.device, logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """What the provider draws, back on the CPU."""
    names = {field.name for field in fields(batch)} - {"width"}
    moved = replace(batch, **{name: getattr(batch, name).to(gpu) for name in names}, width=batch.width)
    drawn = provider.sample(logits.to(gpu), moved)
    return Samples(**{field.name: getattr(drawn, field.name).cpu() for field in fields(Samples)})


def assert_same(logits: torch.Tensor, batch: SamplingBatch, gpu: torch.device) -> Samples:
    """The providers agree; what they do."""
    before = logits.clone()
    actual, expected = drawn_by(gpu, logits, batch), reference.sample(logits, batch)
    assert torch.equal(logits, before)
    assert_same_samples(actual, expected)
    return actual


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values)


@both_dtypes
@pytest.mark.parametrize("vocabulary", [1, 129, 431, 700])
def test_rows_of_every_kind(dtype: torch.dtype, vocabulary: int, gpu: torch.device) -> None:
    logits, batch = reference.inputs(9, vocabulary, dtype, vocabulary)
    assert_same(logits, replace(batch, top=batch.top.clamp(max=3), width=3), gpu)


@pytest.mark.filterwarnings("ignore:overflow")
@both_dtypes
def test_plain_rows_of_several_tiles(dtype: torch.dtype, gpu: torch.device) -> None:
    """What a batch without edits and masks compiles to: 40 chunks are two tiles."""
    logits = (3 * torch.randn(6, 5001, generator=torch.Generator().manual_seed(1))).to(dtype)
    logits[4] -= 300
    logits[4, :4096] = -INFINITE
    logits[5] = torch.finfo(dtype).min  # as some models pad their vocabulary
    logits[5, 4500:4502] = -2e4
    assert_same(logits, rows(6, temperature=floats(0, 1, 0.3, 30, 1, 1), top=int32([0, 2, 0, 0, 1, 2])), gpu)


@both_dtypes
@pytest.mark.parametrize("flat", [False, True])
def test_filters_that_leave_few_chunks_and_more_than_are_held(
    dtype: torch.dtype, flat: bool, gpu: torch.device
) -> None:
    draw = torch.Generator().manual_seed(2)
    logits = ((0.1 if flat else 4) * torch.randn(6, 4999, generator=draw) - 1).to(dtype)
    batch = rows(
        6,
        temperature=floats(1, 1, 0.7, 1, 2, 1),
        top_k=int32([7, 2000, 0, 0, 3000, 0]),
        top_p=floats(1, 1, 0.9, 0.999, 0.8, 1),
        min_p=floats(0, 0, 0, 0.01, 0, 0.9),
    )
    assert_same(logits, batch, gpu)


@pytest.mark.parametrize("seed", range(2))
def test_ties_are_treated_alike(seed: int, gpu: torch.device) -> None:
    draw = torch.Generator().manual_seed(seed)
    levels = floats(-3, 0, -0.0, 1, 1.5)[torch.randint(0, 4 + seed, (300,), generator=draw)]
    batch = rows(
        8,
        top_k=int32([0, 1, 5, 0, 0, 150, 200, 299]),
        top_p=floats(0, 1, 1, 0.5, 0.75, 0.9, 1, 1),
        min_p=floats(0, 0, 0, 0, 0, 0, 1, 0.3),
        mask=masks_of(torch.randint(0, 2, (1, 300), generator=draw) > 0),
        mask_row=int32([0, -1] * 4),
        top=int32([6, 0] * 4),
    )
    assert_same(levels.repeat(8, 1), batch, gpu)


def test_many_edits_of_one_row_and_bans_of_all_tokens(gpu: torch.device) -> None:
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 600, generator=draw).bfloat16()
    first, second = torch.randperm(600, generator=draw), torch.randperm(600, generator=draw)[:270]
    batch = rows(
        3,
        temperature=floats(1, 0.5, 0),
        edited=torch.cat((first, second)).to(torch.int32),
        edit_starts=int32([0, 600, 870, 870]),
        edit_scale=torch.cat((torch.ones(600), 1 + torch.rand(270, generator=draw))),
        edit_offset=torch.cat((torch.full((600,), -INFINITE), torch.randn(270, generator=draw))),
        top=int32([2, 0, 0]),
    )
    assert assert_same(logits, batch, gpu).tokens[0] == -1


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("temperature", [1e-40, 1e-3, 1e6])
def test_extreme_temperatures_and_logits(temperature: float, gpu: torch.device) -> None:
    logits = floats(1e-6, 1, 1e4, 1e7)[:, None] * torch.randn(4, 300, generator=torch.Generator().manual_seed(8))
    assert_same(logits, rows(4, temperature=torch.full((4,), temperature), top_p=floats(1, 0.5, 1, 0.9)), gpu)


@pytest.mark.parametrize("changed", [False, True])
def test_low_margins(changed: bool, gpu: torch.device) -> None:
    """The next one is in the likeliest's chunk (ids 256 to 383), in another, or nowhere near."""
    logits = torch.full((6, 700), -9.0)
    logits[:, 300] = 2.0
    for row, place in enumerate((301, 300, 511, 5, 699)):
        logits[row, place] = 2.0
    logits[5] = 0
    batch = rows(6)
    if changed:
        masks = masks_of(torch.arange(700)[None] == 7)
        batch = replace(batch, mask=masks, mask_row=int32([0] * 6))
    assert assert_same(logits, batch, gpu).low_margins.tolist() == [1, 0, 1, 1, 1, 1]


def test_the_likeliest_end_where_the_tokens_do(gpu: torch.device) -> None:
    logits = torch.tensor([[1.0, -INFINITE, 2.0, 1.0]])
    assert assert_same(logits, rows(1, top=int32([5])), gpu).top_tokens.tolist() == [[2, 0, 3, -1, -1]]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("changes", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": 0.0}])
def test_broken_logits_stay_inside_the_vocabulary_and_the_mask(changes: dict[str, float], gpu: torch.device) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(6))
    logits[0, 7] = float("nan")
    logits[1, 7] = logits[2, 7] = INFINITE
    logits[3] = float("nan")
    logits[4] = -INFINITE
    plain = rows(5, mask=masks_of(torch.arange(300)[None] % 7 == 0), mask_row=int32([0, 0, -1, -1, 0]))
    changed = {name: torch.full_like(getattr(plain, name), value) for name, value in changes.items()}
    tokens = drawn_by(gpu, logits, replace(plain, **changed, width=plain.width)).tokens.tolist()
    assert tokens[0] in range(0, 300, 7)
    assert tokens[1:] == [7, 7, -1, -1]
    # Without a mask there is another kernel.
    unmasked = replace(plain, **changed, width=0, mask=plain.mask[:0], mask_row=int32([-1] * 5))
    assert drawn_by(gpu, logits, unmasked).tokens.tolist()[1:] == [7, 7, -1, -1]


def test_a_gpu_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(provider, "sample", lambda logits, batch: called.append(logits.shape))
    sample(torch.zeros(2, 5), rows(2))
    assert called == [(2, 5)]
