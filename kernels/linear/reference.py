"""What is a product with int8 or fp8 weights? ("W8A8": both sides are rounded, each row and output by its own scale)

Symmetric: the largest magnitude of a row becomes 127 (Dettmers et al. 2022, "vector-wise quantization", without its
outliers' own path), or 448 in fp8 (e4m3, Micikevicius et al. 2022: 3 bits of mantissa, so that what is rounded is
wrong by 1/16 of itself at most). What is rounded on the left are the rows that come in, anew in every step.
"""

from typing import Final, NamedTuple

import torch

FP8_MAX: Final = 448.0
# A row's largest magnitude counts as this at least: a row of zeros has a scale too, and no step overflows.
FP8_TINY: Final = 2.0**-100
# Of a provider, relative to the larger of 1 and the expected value: that of the order of sums, and of rounding.
TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# The same of fp8, where the larger of a row counts too: Hopper sums 128 products at a time in some 14 bits.
FP8_TOLERANCE: Final = {torch.float32: 2e-3, torch.bfloat16: 2e-2}


class Quantised(NamedTuple):
    """``values`` [rows, columns] int8 from -127 to 127 or float8_e4m3fn, each worth ``scale`` [rows] float32."""

    values: torch.Tensor
    scale: torch.Tensor


def quantise(rows: torch.Tensor) -> Quantised:
    """Round each row of [rows, columns] to steps of 1/127 of its largest magnitude; a row of zeros has the scale 0."""
    wide = rows.float()
    largest = wide.abs().amax(dim=1)
    steps = torch.where(largest > 0, 127 / largest, 0.0)
    return Quantised((wide * steps[:, None]).round_().to(torch.int8), largest / 127)


def quantise_fp8(rows: torch.Tensor) -> Quantised:
    """Round each row of [rows, columns], in units of 1/448 of its largest magnitude, to the nearest float8_e4m3fn."""
    wide = rows.float()
    largest = wide.abs().amax(dim=1).clamp(min=FP8_TINY)
    steps = torch.full_like(largest, FP8_MAX) / largest  # a number divided by a tensor would be rounded twice
    return Quantised((wide * steps[:, None]).to(torch.float8_e4m3fn), largest / FP8_MAX)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias`` in float32, rounded to x's dtype."""
    result = x.float() @ weight.float().T
    return (result if bias is None else result + bias.float()).to(x.dtype)


def linear_int8(x: torch.Tensor, weight: Quantised, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same with x rounded to int8 and ``weight`` [out, in] already so."""
    left = quantise(x)
    product = (left.values.double() @ weight.values.double().T).float()  # exact
    result = product * (left.scale[:, None] * weight.scale)
    return (result if bias is None else result + bias.float()).to(x.dtype)


def linear_fp8(x: torch.Tensor, weight: Quantised, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same with x rounded to fp8 and ``weight`` [out, in] already so."""
    left = quantise_fp8(x)
    product = (left.values.double() @ weight.values.double().T).float()
    result = product * (left.scale[:, None] * weight.scale)
    return (result if bias is None else result + bias.float()).to(x.dtype)


def inputs(
    rows: int, width: int, outputs: int, dtype: torch.dtype, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [rows, width], weight [outputs, width] and bias [outputs] of a layer as they come in models."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=random).to(dtype)
    weight = (torch.randn(outputs, width, generator=random) / width**0.5).to(dtype)
    return x, weight, torch.randn(outputs, generator=random).to(dtype)
