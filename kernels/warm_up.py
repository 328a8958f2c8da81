"""Which kernels must be compiled before the first request, and how is that shown?

Numba compiles a kernel when it is first called with arguments of a type, and keeps the result on disk: the first start
on a machine takes 20 to 30 seconds on an idle core, later ones half a second.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import numba
import torch

from kernels import simd
from kernels.layers import LayerParts, Layers
from kernels.linear import Form, Weight
from kernels.linear import numba as panels
from kernels.paged_attention import paged_attention
from kernels.paged_attention.reference import inputs as attention_inputs
from kernels.rms_norm import rms_norm
from kernels.rms_norm.reference import inputs as norm_inputs
from kernels.rope_kv_write import rope_kv_write
from kernels.rope_kv_write.reference import inputs as rope_inputs
from kernels.sample import sample
from kernels.sample.reference import inputs as sample_inputs
from kernels.score import score
from kernels.score.reference import inputs as score_inputs
from kernels.silu_mul import silu_mul
from kernels.silu_mul.reference import inputs as silu_inputs

ProgressCallback = Callable[[str, int, int], None]
# One token, and enough of them that the parallel variants run.
_SIZES: Final = (1, 256)


def warm_up(device: torch.device, dtype: torch.dtype, progress: ProgressCallback) -> None:
    """Compile, or load from disk, what a model in ``dtype`` calls; ``progress`` gets ("kernels", done, total).

    On a CPU the kernels take as many threads as torch does, and the same ones: Numba's OpenMP layer and torch load
    one libgomp between them, so that their pools are one and don't starve each other.
    """
    if device.type != "cpu" or dtype not in simd.TAGS:
        return
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    calls = list(_calls(dtype))
    for done, call in enumerate(calls):
        progress("kernels", done, len(calls))
        call()
    progress("kernels", len(calls), len(calls))


def _calls(dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    for tokens in _SIZES:
        x, weight, residual = norm_inputs(tokens, 256, dtype, 0)
        yield partial(rms_norm, x, weight, 1e-6, residual)
        yield partial(silu_mul, silu_inputs(tokens, 256, dtype, 0))
        rope = rope_inputs(tokens, 4, 2, 64, dtype, 0)
        yield partial(rope_kv_write, rope.qkv, rope.positions, rope.slots, rope.table, rope.cache, rope.norm)
    attention = attention_inputs([(1, 20)], 4, 2, 16, 16, dtype, 0)
    yield partial(paged_attention, attention.query, attention.cache, attention.batch, window=0, scale=1.0)
    if dtype == torch.bfloat16:
        yield partial(_one_layer, dtype)
    logits, batch = sample_inputs(8, 300, dtype, 0)
    yield partial(sample, logits, batch)
    yield partial(score, *score_inputs(2, 300, dtype, 0), 2)


def _one_layer(dtype: torch.dtype) -> None:
    """A step of a model of one layer and one head, in one call."""
    width, dim = 16, 16
    attention = attention_inputs([(1, 1)], 1, 1, dim, 16, dtype, 0)
    norm = torch.zeros(width, dtype=dtype)

    def weight(outputs: int) -> Weight:
        return Weight(panels.pack(torch.zeros(outputs, width, dtype=dtype)), Form.PANELS, outputs)

    layer = LayerParts(
        input_norm=norm,
        qkv=weight(3 * dim),
        qkv_bias=None,
        qk_norm=None,
        output=weight(width),
        output_bias=None,
        window=0,
        mlp_norm=norm,
        gate_up=weight(2 * width),
        gate_up_bias=None,
        down=weight(width),
        down_bias=None,
    )
    layers = Layers(torch.zeros(1, width, dtype=dtype), [layer], [attention.cache], torch.zeros(1, dim), 1e-6)
    zero = torch.zeros(1, dtype=torch.int32)
    layers.run(zero, zero, zero.long(), attention.batch)
