"""Does the GPU's fp8 product compute what the reference says, whatever tile, split or library takes it?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import device
from kernels.linear import Form, linear, pack, reference
from kernels.linear import triton as fp8
from tests.kernels.compare import both_dtypes


def multiply(
    x: torch.Tensor, weight: reference.Quantised, bias: torch.Tensor | None, arrivals: torch.Tensor
) -> torch.Tensor:
    """`fp8.linear_fp8` where ``arrivals`` lie."""
    place = arrivals.device
    there = reference.Quantised(weight.values.to(place), weight.scale.to(place))
    return fp8.linear_fp8(x.to(place), there, arrivals, None if bias is None else bias.to(place)).cpu()


def near(actual: torch.Tensor, expected: torch.Tensor, x: torch.Tensor) -> None:
    """Within the tolerance, which is relative to a row's largest where its scale is beyond 1."""
    scale = expected.float().abs().maximum(x.float().abs().amax(1, keepdim=True)).clamp(min=1)
    assert actual.dtype == expected.dtype
    assert (actual.float() - expected.float()).abs().le(reference.FP8_TOLERANCE[x.dtype] * scale).all()


def same_bits(actual: reference.Quantised, expected: reference.Quantised) -> None:
    assert torch.equal(actual.values.cpu().view(torch.uint8), expected.values.view(torch.uint8))
    assert torch.equal(actual.scale.cpu(), expected.scale)


@both_dtypes
@pytest.mark.parametrize("width", [1, 16, 70, 1030])
def test_rounding_is_the_reference(dtype: torch.dtype, width: int, gpu: torch.device) -> None:
    x, _, _ = reference.inputs(4, width, 1, dtype, width)
    x[1] *= 1000
    x[2] = 0
    same_bits(fp8.quantise(x.to(gpu)), reference.quantise_fp8(x))


def test_rounding_ties_carries_and_steps_below_normal(gpu: torch.device) -> None:
    x = torch.cat([torch.linspace(-448, 448, 1000), torch.logspace(-4, 2.6, 1000), torch.tensor([2.0**-10, 125.0])])
    same_bits(fp8.quantise(x[None].to(gpu)), reference.quantise_fp8(x[None]))


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 40), st.sampled_from([16, 100, 128, 300]), st.integers(1, 140)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_is_the_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, bias: bool, seed: int, gpu: torch.device
) -> None:
    x, weight, offset = reference.inputs(*shape, dtype, seed)
    x[0] *= 1000  # rows have scales of their own
    rounded, added = reference.quantise_fp8(weight), offset if bias else None
    near(multiply(x, rounded, added, fp8.new_arrivals(len(weight), gpu)), reference.linear_fp8(x, rounded, added), x)


@pytest.mark.parametrize("rows", [1, 17, 64])
@pytest.mark.parametrize("width", [1024, 1100, 2048])
def test_inputs_in_parts(rows: int, width: int, gpu: torch.device) -> None:
    x, weight, bias = reference.inputs(rows, width, 72, torch.bfloat16, rows)
    assert fp8.plan(rows, 72, width, device.multiprocessors(gpu)).splits == width // 512
    rounded = reference.quantise_fp8(weight)
    arrivals = fp8.new_arrivals(72, gpu)
    first = multiply(x, rounded, bias, arrivals)
    near(first, reference.linear_fp8(x, rounded, bias), x)
    assert not arrivals.any()  # so that it can be done again
    assert torch.equal(multiply(x, rounded, bias, arrivals), first)


@pytest.mark.parametrize("bias", [False, True])
def test_many_rows_in_our_own_tiles(bias: bool, gpu: torch.device) -> None:
    x, weight, offset = reference.inputs(fp8.FEW + 70, 140, 135, torch.bfloat16, 0)
    rounded, added = reference.quantise_fp8(weight), offset if bias else None
    near(multiply(x, rounded, added, fp8.new_arrivals(135, gpu)), reference.linear_fp8(x, rounded, added), x)


@pytest.mark.parametrize("bias", [False, True])
def test_many_rows_by_the_library(bias: bool, monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    monkeypatch.setattr(fp8, "_cublas_takes", lambda *args: True)  # torch has this operation on a CPU as well
    monkeypatch.setattr(fp8, "_multiply", None)
    x, weight, offset = reference.inputs(fp8.FEW + 1, 64, 32, torch.bfloat16, 0)
    rounded, added = reference.quantise_fp8(weight), offset if bias else None
    near(multiply(x, rounded, added, fp8.new_arrivals(32, gpu)), reference.linear_fp8(x, rounded, added), x)


def test_what_the_library_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        dtype, is_cuda, device = torch.bfloat16, True, torch.device("cuda", 0)

    x, weight, bias = OnGpu(), torch.empty(32, 16), torch.empty(32, dtype=torch.bfloat16)

    def takes(x: object, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        return fp8._cublas_takes(x, weight, bias)  # type: ignore[arg-type]

    monkeypatch.setattr(fp8, "_capability", lambda index: (9, 0))
    assert takes(x, weight, None)
    assert takes(x, weight, bias)
    assert not takes(x, weight, bias.float())
    assert not takes(x, torch.empty(33, 16), None)
    assert not takes(x, torch.empty(32, 24), None)
    assert not takes(torch.empty(1, 16), weight, None)
    assert not takes(torch.empty(1, 16, dtype=torch.bfloat16), weight, None)
    monkeypatch.setattr(fp8, "_capability", lambda index: (8, 9))
    assert not takes(x, weight, None)


@pytest.mark.parametrize("outputs", [896, 1024, 4096, 6144, 28672, 128256])
@pytest.mark.parametrize("inputs", [896, 4096, 14336])
@pytest.mark.parametrize("rows", [1, 17, 33])
def test_a_plan_fills_the_gpu_where_there_is_enough_to_do(rows: int, inputs: int, outputs: int) -> None:
    how = fp8.plan(rows, outputs, inputs, 132)
    blocks = -(-outputs // how.outputs) * how.splits
    assert rows <= how.rows
    assert inputs // 128 >= 4 * how.splits or how.splits == 1
    assert blocks >= 90 or inputs // 128 < 8 * how.splits


def test_rows_may_have_gaps_and_be_none(gpu: torch.device) -> None:
    x, weight, _ = reference.inputs(3, 64, 20, torch.bfloat16, 1)
    rounded = reference.quantise_fp8(weight)
    wide = torch.full((3, 100), torch.nan, dtype=torch.bfloat16)
    wide[:, :64] = x
    arrivals = fp8.new_arrivals(20, gpu)
    gapped = fp8.quantise(wide.to(gpu)[:, :64])
    same_bits(gapped, reference.quantise_fp8(x))
    assert multiply(x[:0], rounded, None, arrivals).shape == (0, 20)


def test_a_gpu_s_weight_is_rounded_and_multiplied_there(monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    x, weight, bias = reference.inputs(2, 48, 70, torch.bfloat16, 0)
    packed = pack(weight.to(gpu), "fp8")
    assert packed.form is Form.FP8
    assert packed.arrivals is not None
    assert packed.arrivals.tolist() == [0, 0]
    actual = linear(x.to(gpu), packed, bias.to(gpu)).cpu()
    near(actual, reference.linear_fp8(x, reference.quantise_fp8(weight), bias), x)
