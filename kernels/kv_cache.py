"""How do keys and values lie in memory?

In blocks of ``block_size`` tokens. On a CPU keys are stored with the tokens innermost, so that one vector load brings
the same component of 16 keys and a score needs no horizontal sum; values with their components innermost. Both
innermost dimensions are padded to `LANES`, so that a kernel never has to treat a rest.

On a GPU both have their components innermost, without padding: what a block holds of one head lies in one piece (4 KiB
for 16 tokens of 128 components in bfloat16), which is what memory likes. The shapes are the same on both; only the
strides tell. There the cache may be in float8 (e4m3, its values as they are, saturated at 448), half the bytes.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

LANES: Final = 16
_ALIGNED: Final = 64


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer.

    ``key`` is [blocks, KV heads, head_dim, block_size padded], ``value`` [blocks, KV heads, block_size, head_dim
    padded] (padded on a CPU only). Token ``i`` of block ``b`` has the slot ``b * block_size + i``. Padding and unused
    slots hold zeros or stale values and are never attended to.
    """

    key: torch.Tensor
    value: torch.Tensor
    block_size: int
    head_dim: int

    @property
    def kv_heads(self) -> int:
        return self.key.shape[1]


def padded(size: int) -> int:
    """``size`` rounded up to a whole number of vectors."""
    return -(-size // LANES) * LANES


def bytes_per_block(kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """What one block of one layer takes, keys and values, in bytes."""
    if device.type != "cpu":
        return 2 * kv_heads * block_size * head_dim * dtype.itemsize
    return kv_heads * (head_dim * padded(block_size) + block_size * padded(head_dim)) * dtype.itemsize


def allocate(
    num_blocks: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> LayerCache:
    """An empty cache. On a CPU the zeros cost no memory until a block is written (the kernel maps them lazily)."""
    if device.type != "cpu":
        return token_major(num_blocks, kv_heads, head_dim, block_size, dtype, device)
    key = _zeros((num_blocks, kv_heads, head_dim, padded(block_size)), dtype)
    value = _zeros((num_blocks, kv_heads, block_size, padded(head_dim)), dtype)
    return LayerCache(key, value, block_size, head_dim)


def token_major(
    num_blocks: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> LayerCache:
    """An empty cache as a GPU wants it, on any device."""
    shape = (num_blocks, kv_heads, block_size, head_dim)
    key, value = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    return LayerCache(key.transpose(2, 3), value, block_size, head_dim)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """``torch.zeros`` would write them: NumPy's come from the system as they are, but aligned to 16 bytes."""
    size = math.prod(shape) * dtype.itemsize
    space = np.zeros(size + _ALIGNED, np.uint8)
    first = -space.ctypes.data % _ALIGNED
    return torch.from_numpy(space[first : first + size]).view(dtype).view(shape)
