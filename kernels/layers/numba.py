"""How does one compiled function go through all layers of a decoder?

It gets addresses: those of the weights and caches from a table with a row for each layer, made once; those of a step's
inputs and of its working memory as arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numba import njit

from kernels import simd
from kernels.kv_cache import LayerCache
from kernels.linear import Form, Weight
from kernels.linear import numba as linear
from kernels.paged_attention import numba as attention
from kernels.paged_attention.reference import AttentionMetadata
from kernels.rms_norm import numba as norm
from kernels.rope_kv_write import numba as rope
from kernels.rope_kv_write.reference import QkNorm
from kernels.silu_mul import numba as silu

# Columns of the table of layers.
INPUT_NORM, MLP_NORM, QUERY_NORM, KEY_NORM, WINDOW, KEY, VALUE = range(7)
QKV, OUTPUT, GATE_UP, DOWN = 7, 10, 13, 16  # each: the panels, their scale, the bias
FIELDS: Final = 19
CHUNK: Final = 256
"""Tokens that go through the MLP together: what lies between its products is wide, and would else fill the caches."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer is made of. ``window`` 0: attends to everything."""

    input_norm: torch.Tensor
    qkv: Weight
    qkv_bias: torch.Tensor | None
    qk_norm: QkNorm | None
    output: Weight
    output_bias: torch.Tensor | None
    window: int
    mlp_norm: torch.Tensor
    gate_up: Weight
    gate_up_bias: torch.Tensor | None
    down: Weight
    down_bias: torch.Tensor | None


class Layers:
    """The layers of one model with its caches, ready to be run. Keeps what it was made of alive.

    Args:
        embedding: [vocabulary, hidden].
        rope: cosines and sines [positions, head_dim] float32.
    """

    def __init__(
        self,
        embedding: torch.Tensor,
        layers: Sequence[LayerParts],
        caches: Sequence[LayerCache],
        rope: torch.Tensor,
        eps: float,
    ) -> None:
        self._kept = (list(layers), list(caches))
        self._embedding = embedding
        self._table = np.array([_row(*pair) for pair in zip(layers, caches, strict=True)], np.int64)
        self._rope = rope
        self._eps = np.float32(eps)
        cache, layer = caches[0], layers[0]
        self._qkv_width = layer.qkv.outputs
        self._inner = layer.gate_up.outputs // 2
        self._cache = (cache.block_size, cache.key.shape[3], cache.value.shape[3], cache.kv_heads)
        self._heads = self._qkv_width // cache.head_dim - 2 * cache.kv_heads
        self._dim = cache.head_dim
        self._space = torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def possible(layers: Sequence[LayerParts], caches: Sequence[LayerCache]) -> bool:
        """Whether these layers are what the compiled function can work on."""
        weights = [weight for layer in layers for weight in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        return all(weight.form is Form.PANELS for weight in weights) and all(simd.supported(one.key) for one in caches)

    def run(
        self, token_ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, batch: AttentionMetadata
    ) -> torch.Tensor:
        """What the last layer leaves of the tokens: [T, hidden]. Writes the caches.

        token_ids and positions [T] int32, slots [T] int64.
        """
        tokens, width = len(token_ids), self._embedding.shape[1]
        hidden = torch.empty(tokens, width, dtype=self._embedding.dtype)
        size = simd.SIZES[hidden.dtype]
        wide = max(self._heads * self._dim, width)
        needed = size * (tokens * (width + self._qkv_width + wide) + min(tokens, CHUNK) * 3 * self._inner)
        if self._space.numel() < needed:
            self._space = torch.empty(needed, dtype=torch.uint8)
        _run(
            simd.tag_of(hidden.dtype),
            size,
            self._table,
            self._embedding.data_ptr(),
            token_ids.data_ptr(),
            hidden.data_ptr(),
            tokens,
            width,
            self._inner,
            self._eps,
            positions.data_ptr(),
            slots.data_ptr(),
            self._rope.data_ptr(),
            *self._cache,
            self._heads,
            self._dim,
            batch.block_tables.data_ptr(),
            batch.block_tables.shape[1],
            batch.query_starts.data_ptr(),
            batch.context_lengths.data_ptr(),
            batch.context_lengths.shape[0],
            self._space.data_ptr(),
            wide,
        )
        return hidden


def _row(layer: LayerParts, cache: LayerCache) -> list[int]:
    row = [0] * FIELDS
    row[INPUT_NORM], row[MLP_NORM] = layer.input_norm.data_ptr(), layer.mlp_norm.data_ptr()
    if layer.qk_norm is not None:
        row[QUERY_NORM], row[KEY_NORM] = layer.qk_norm.query.data_ptr(), layer.qk_norm.key.data_ptr()
    row[WINDOW], row[KEY], row[VALUE] = layer.window, cache.key.data_ptr(), cache.value.data_ptr()
    products = (
        (QKV, layer.qkv, layer.qkv_bias),
        (OUTPUT, layer.output, layer.output_bias),
        (GATE_UP, layer.gate_up, layer.gate_up_bias),
        (DOWN, layer.down, layer.down_bias),
    )
    for at, weight, bias in products:
        scale = 0 if weight.scale is None else weight.scale.data_ptr()
        row[at : at + 3] = weight.tensor.data_ptr(), scale, 0 if bias is None else bias.data_ptr()
    return row


@njit(cache=True, fastmath=simd.FASTMATH)
def _product(tag: Any, size: int, x: int, rows: int, inputs: int, row: Any, at: int, outputs: int, out: int) -> None:
    linear.product(tag, size, x, inputs, rows, inputs, row[at], row[at + 1], row[at + 2], outputs, out)


# A step may take seconds: without the GIL, so that the worker's heartbeat goes on.
@njit(cache=True, nogil=True, fastmath=simd.FASTMATH)
def _run(
    tag: Any,
    size: int,
    table: Any,
    embedding: int,
    token_ids: int,
    hidden: int,
    tokens: int,
    width: int,
    inner: int,
    eps: Any,
    positions: int,
    slots: int,
    turns: int,
    block_size: int,
    key_stride: int,
    value_stride: int,
    kv_heads: int,
    heads: int,
    dim: int,
    block_tables: int,
    table_stride: int,
    starts: int,
    contexts: int,
    sequences: int,
    space: int,
    wide: int,
) -> None:
    query = heads * dim
    qkv_width = query + 2 * kv_heads * dim
    scale = np.float32(1 / np.sqrt(dim))
    x = space
    qkv = x + tokens * width * size
    y = qkv + tokens * qkv_width * size
    gate_up = y + tokens * wide * size
    z = gate_up + min(tokens, CHUNK) * 2 * inner * size
    for token in range(tokens):
        source = embedding + simd.get_i32(token_ids + 4 * token) * width * size
        for i in range(0, width, simd.LANES):
            part = simd.load_part(source + i * size, tag, width - i)
            simd.store_part(hidden + (token * width + i) * size, part, tag, width - i)
    for layer in range(len(table)):
        row = table[layer]
        # The first layer has nothing to add to the residual yet.
        norm.norm(
            tag, size, hidden if layer == 0 else x, row[INPUT_NORM], 0 if layer == 0 else hidden, y, tokens, width, eps
        )
        _product(tag, size, y, tokens, width, row, QKV, qkv_width, qkv)
        rope.write(
            tag,
            size,
            qkv,
            positions,
            slots,
            turns,
            row[KEY],
            row[VALUE],
            block_size,
            key_stride,
            value_stride,
            kv_heads,
            heads,
            dim,
            row[QUERY_NORM],
            row[KEY_NORM],
            eps,
            tokens,
        )
        attention.attend(
            tag,
            size,
            qkv,
            qkv_width,
            y,
            row[KEY],
            row[VALUE],
            block_size,
            key_stride,
            dim,
            value_stride,
            kv_heads,
            heads // kv_heads,
            block_tables,
            table_stride,
            starts,
            contexts,
            sequences,
            row[WINDOW],
            scale,
        )
        _product(tag, size, y, tokens, query, row, OUTPUT, width, x)
        norm.norm(tag, size, x, row[MLP_NORM], hidden, y, tokens, width, eps)
        for first in range(0, tokens, CHUNK):
            count = min(CHUNK, tokens - first)
            _product(tag, size, y + first * width * size, count, width, row, GATE_UP, 2 * inner, gate_up)
            silu.activate(tag, size, gate_up, z, count, inner)
            _product(tag, size, z, count, inner, row, DOWN, width, x + first * width * size)
    norm.add(tag, size, x, hidden, tokens * width)
