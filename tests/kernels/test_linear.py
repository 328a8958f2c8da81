"""Does a weight in every form give what the reference gives, and are int8 and fp8 as near as 8 bits can be?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.linear import Form, Weight, linear, numba, pack, quantization_fault, reference
from tests.kernels.compare import assert_close, both_dtypes

SHAPES = st.tuples(st.integers(1, 11), st.integers(1, 70), st.integers(1, 50))


@both_dtypes
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_is_plain(dtype: torch.dtype, rows: int, bias: bool) -> None:
    x, weight, offset = reference.inputs(rows, 42, 123, dtype, rows)
    with torch.inference_mode():
        actual = linear(x, pack(weight), offset if bias else None)
    assert_close(actual, reference.linear(x, weight, offset if bias else None), reference.TOLERANCE[dtype])
    assert actual.dtype == dtype


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, seed=st.integers(0, 99), bias=st.booleans())
def test_panels_are_the_reference(shape: tuple[int, int, int], seed: int, bias: bool) -> None:
    x, weight, offset = reference.inputs(*shape, torch.bfloat16, seed)
    added = offset if bias else None
    actual = numba.linear(x, numba.pack(weight), len(weight), None, added)
    assert_close(actual, reference.linear(x, weight, added), reference.TOLERANCE[torch.bfloat16])


@both_dtypes
@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, seed=st.integers(0, 99), bias=st.booleans())
def test_int8_is_the_reference(dtype: torch.dtype, shape: tuple[int, int, int], seed: int, bias: bool) -> None:
    x, weight, offset = reference.inputs(*shape, dtype, seed)
    x[0] *= 1000  # rows have scales of their own
    added = offset if bias else None
    packed = pack(weight, "int8")
    assert packed.form is Form.PANELS
    expected = reference.linear_int8(x, reference.quantise(weight), added)
    # A value that lies between two steps may be rounded to the other one: worth a weight's step times x's.
    step = x.float().abs().amax(1, keepdim=True) / 127 * weight.float().abs().max()
    assert (
        (linear(x, packed, added).float() - expected.float())
        .abs()
        .le(2 * step + reference.TOLERANCE[dtype] * expected.float().abs().clamp(min=1))
        .all()
    )


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [numba.WIDE, numba.BLOCK, numba.BLOCK + 1, 2 * numba.BLOCK + 3])
def test_rows_don_t_depend_on_how_many_there_are(rows: int, int8: bool) -> None:
    x, weight, bias = reference.inputs(rows, 96, 40, torch.bfloat16, rows)
    packed = pack(weight, "int8") if int8 else Weight(numba.pack(weight), Form.PANELS, 40)
    whole = linear(x, packed, bias)
    single = torch.cat([linear(x[i : i + 1], packed, bias) for i in range(rows)])
    assert_close(whole, single, 1e-2)
    if int8:
        assert torch.equal(whole, single)


def test_rows_may_have_gaps() -> None:
    x, weight, _ = reference.inputs(5, 64, 20, torch.bfloat16, 1)
    wide = torch.full((5, 100), torch.nan, dtype=torch.bfloat16)
    wide[:, :64] = x
    packed = Weight(numba.pack(weight), Form.PANELS, 20)
    assert torch.equal(linear(wide[:, :64], packed), linear(x, packed))


def test_int8_of_zeros() -> None:
    packed = pack(torch.zeros(20, 8), "int8")
    assert not linear(torch.ones(2, 8), packed).any()
    assert not linear(torch.zeros(2, 8), pack(torch.ones(20, 8), "int8")).any()


def test_int8_is_near_what_was_rounded() -> None:
    x, weight, _ = reference.inputs(64, 768, 512, torch.float32, 0)
    exact = reference.linear(x, weight)
    rounded = reference.linear_int8(x, reference.quantise(weight))
    assert (rounded - exact).square().mean().sqrt() < 0.012 * exact.square().mean().sqrt()


@both_dtypes
def test_fp8_on_a_cpu_is_the_reference(dtype: torch.dtype) -> None:
    x, weight, bias = reference.inputs(5, 42, 20, dtype, 0)
    packed = pack(weight, "fp8")
    assert packed.form is Form.FP8
    assert packed.tensor.dtype == torch.float8_e4m3fn
    assert torch.equal(linear(x, packed, bias), reference.linear_fp8(x, reference.quantise_fp8(weight), bias))


def test_fp8_rounds_to_the_nearest() -> None:
    rows = torch.tensor([[448.0, 17.0, -19.0, 0.0], [1.0, -0.5, 0.3, 1e-9], [0.0, 0.0, 0.0, 0.0]])
    values, scale = reference.quantise_fp8(rows)
    assert values.float()[0].tolist() == [448.0, 16.0, -20.0, 0.0]
    assert values.float()[1].tolist() == [448.0, -224.0, 128.0, 0.0]
    assert not values.float()[2].any()
    assert scale[:2].tolist() == pytest.approx([1.0, 1 / 448])


def test_fp8_is_near_what_was_rounded() -> None:
    x, weight, _ = reference.inputs(64, 768, 512, torch.float32, 0)
    exact = reference.linear(x, weight)
    rounded = reference.linear_fp8(x, reference.quantise_fp8(weight))
    assert (rounded - exact).square().mean().sqrt() < 0.04 * exact.square().mean().sqrt()


def test_what_can_be_rounded_where(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert quantization_fault("none", cpu) is quantization_fault("none", gpu) is quantization_fault("int8", cpu) is None
    assert str(quantization_fault("int8", gpu)).startswith("int8 is for CPUs")
    assert str(quantization_fault("fp8", cpu)).startswith("fp8 is for GPUs")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (8, 6))
    assert "8.9 or higher, and this one has 8.6" in str(quantization_fault("fp8", gpu))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (8, 9))
    assert quantization_fault("fp8", gpu) is None


def test_a_cpu_without_bf16_takes_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    packed = pack(torch.ones(3, 5, dtype=torch.bfloat16))
    assert packed.form is Form.PANELS
    assert linear(torch.ones(2, 5, dtype=torch.bfloat16), packed).tolist() == [[5.0] * 3] * 2


def test_float32_stays_as_it_is() -> None:
    weight = torch.ones(3, 5)
    assert pack(weight).tensor is weight
