"""Which of our blocks is the one that an upstream calls so? A map from 64-bit integers to such, in little memory.

A dict takes 115 bytes an entry for the two integers alone; this takes 16 a slot of a table that is 40 to 80 % full. It
is the same open addressing as `scheduler.prefix_table`'s, plain: what follows upstreams' events isn't worth Numba's 70
MiB. A lookup takes 0.2 µs.
"""

from typing import Any, Final

import numpy as np

from scheduler.prefix_table import discard, find, grow

_FIRST: Final = 1024
_FULLEST: Final = 0.8
_WORD: Final = 1 << 64
_SIGN: Final = 1 << 63


class BlockNames:
    """The names of blocks, and ours. All integers have 64 bits, signed or not; ours are never 0."""

    __slots__ = ("_arrays", "_keys", "_mask", "_most", "_ours", "_used")

    def __init__(self) -> None:
        self.clear()

    def __len__(self) -> int:
        return self._used

    def __contains__(self, name: int) -> bool:
        return find(self._keys, self._mask, _signed(name)) >= 0

    @property
    def memory(self) -> int:
        """Bytes that it takes."""
        return sum(int(one.nbytes) for one in self._arrays)

    def get(self, name: int) -> int | None:
        """Our hash of a block; None if there is no such block."""
        slot = find(self._keys, self._mask, _signed(name))
        return self._ours[slot] if slot >= 0 else None

    def put(self, name: int, ours: int) -> bool:
        """A block is called so, from now on. Whether that name was there already."""
        key = _signed(name)
        slot = find(self._keys, self._mask, key)
        if slot >= 0:
            self._ours[slot] = ours
            return True
        if self._used >= self._most:
            self._grow()
            slot = find(self._keys, self._mask, key)
        slot = -1 - slot
        self._keys[slot], self._ours[slot] = key, ours
        self._used += 1
        return False

    def pop(self, name: int) -> int:
        """Forget a name; returns our hash.

        Raises:
            KeyError: it isn't there.
        """
        slot = find(self._keys, self._mask, _signed(name))
        if slot < 0:
            raise KeyError(name)
        ours: int = self._ours[slot]
        discard(self._keys, self._ours, self._ours, self._mask, slot)
        self._used -= 1
        return ours

    def clear(self) -> None:
        """Forget all."""
        self._used = 0
        self._hold([np.zeros(_FIRST, np.int64) for _ in range(2)])

    def _grow(self) -> None:
        keys, ours = self._arrays
        self._hold(grow([keys, ours, ours], 2 * len(keys))[:2])

    def _hold(self, arrays: list[Any]) -> None:
        self._arrays = arrays
        self._keys: Any = memoryview(arrays[0])
        self._ours: Any = memoryview(arrays[1])
        self._mask = len(arrays[0]) - 1
        self._most = int(_FULLEST * len(arrays[0]))


def _signed(name: int) -> int:
    name %= _WORD
    return (name - _WORD if name >= _SIGN else name) or 1
