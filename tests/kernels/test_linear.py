"""Does a packed weight give what ``F.linear`` gives, and does everything fall back to that?"""

import pytest
import torch

from kernels.linear import Weight, linear, pack
from tests.kernels.compare import assert_close, both_dtypes


@both_dtypes
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_is_plain(dtype: torch.dtype, rows: int, bias: bool) -> None:
    draw = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, 42, generator=draw).to(dtype) for n in (rows, 123))
    offset = torch.randn(123, generator=draw).to(dtype) if bias else None
    with torch.inference_mode():
        actual = linear(x, pack(weight), offset)
    expected = x.float() @ weight.float().T + (offset.float() if offset is not None else 0)
    assert_close(actual, expected, 1e-4 if dtype == torch.float32 else 4e-2)
    assert actual.dtype == dtype


def test_without_onednn_the_weight_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight = torch.ones(3, 5, dtype=torch.bfloat16)
    packed = pack(weight)
    assert packed == Weight(weight, False)
    assert linear(torch.ones(2, 5, dtype=torch.bfloat16), packed).tolist() == [[5.0] * 3] * 2
