"""Which tensors do safetensors files hold, and how does one get at them without reading all?

`Checkpoint` finds each tensor in its file and maps it into memory. A mapped tensor costs page cache, not memory of the
process, and its mapping goes when the tensor has been dropped.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from engine.config import ModelFault

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
MAX_HEADER: Final = 100_000_000  # the safetensors format's own limit
DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
# Tensors that some checkpoints carry and nobody reads: precomputed RoPE, and the head of a tied model.
HARMLESS: Final = re.compile(r"rotary_emb\.inv_freq$|^lm_head\.weight$")


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor's bytes are: ``start`` counts from the beginning of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class Checkpoint:
    """The safetensors files of a model's folder, single or sharded, or one file."""

    def __init__(self, path: Path) -> None:
        """Read the headers of all files in the folder ``path``, or of the file that it is.

        Raises:
            ModelFault: there are no weights, a shard is missing or truncated, or a header or index is unreadable.
        """
        self._entries: dict[str, _Entry] = {}
        if path.is_file():
            self._entries = _read_header(path)
        elif (index_path := path / INDEX_FILE).is_file():
            self._read_index(index_path)
        elif (single := path / SINGLE_FILE).is_file():
            self._entries = _read_header(single)
        else:
            raise ModelFault(f"{path} has no weights: expected {SINGLE_FILE} or {INDEX_FILE}")
        self._unread = set(self._entries)
        self.total_bytes = sum(entry.size for entry in self._entries.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What there is: the shape of each tensor, by its name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The named tensor, as a view of its file.

        Raises:
            ModelFault: it is missing, or has another shape or a dtype that is no weight's.
        """
        entry = self._entries.get(name)
        if entry is None:
            files = sorted({entry.path.name for entry in self._entries.values()})
            raise ModelFault(f"the tensor {name} is missing: none of {', '.join(files)} has it")
        if entry.shape != shape:
            raise ModelFault(
                f"{entry.path}: the tensor {name} has the shape {list(entry.shape)}, "
                f"but config.json makes it {list(shape)}"
            )
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise ModelFault(
                f"{entry.path}: the tensor {name} has the dtype {entry.dtype}, expected one of {', '.join(DTYPES)}"
            )
        expected = math.prod(shape) * dtype.itemsize
        if entry.size != expected:
            raise ModelFault(
                f"{entry.path}: the tensor {name} has {entry.size} bytes, "
                f"but its shape {list(shape)} in {entry.dtype} takes {expected}"
            )
        self._unread.discard(name)
        # Mapped copy-on-write: torch wants writable memory, and nothing ever writes.
        data = np.memmap(entry.path, np.uint8, "c", entry.start, (entry.size,))
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def bytes_of(self, name: str) -> int:
        """The size of a tensor that exists."""
        return self._entries[name].size

    def unread(self) -> list[str]:
        """Tensors that nobody asked for, but for those known to be harmless."""
        return sorted(name for name in self._unread if not HARMLESS.search(name))

    def _read_index(self, path: Path) -> None:
        try:
            files: dict[str, str] = dict(json.loads(path.read_bytes())["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFault(f"{path}: not readable as an index of shards: {error!r}") from error
        for name in sorted(set(files.values())):
            shard = path.parent / name
            if not shard.is_file():
                tensors = sum(file == name for file in files.values())
                raise ModelFault(f"{shard} is missing: {path.name} says that it holds {tensors} tensors")
            self._entries.update(_read_header(shard))
        for tensor, file in files.items():
            if tensor not in self._entries:
                raise ModelFault(
                    f"{path.parent / file}: the tensor {tensor} is missing, which {path.name} places there"
                )


def _read_header(path: Path) -> dict[str, _Entry]:
    """The tensors of one file: an 8-byte length, a JSON header, then the bytes (the safetensors format)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER + 1
        if length > MAX_HEADER or 8 + length > size:
            raise ModelFault(f"{path}: truncated or no safetensors file: {size} bytes don't hold its header")
        try:
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(path, 8 + length, fields) for name, fields in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFault(f"{path}: the header is not readable: {error!r}") from error
    for name, entry in entries.items():
        if entry.start + entry.size > size:
            raise ModelFault(
                f"{path}: truncated: the tensor {name} ends at byte {entry.start + entry.size}, "
                f"but the file has {size} bytes"
            )
    return entries


def _entry(path: Path, base: int, fields: Mapping[str, Any]) -> _Entry:
    start, end = fields["data_offsets"]
    shape = tuple(int(dimension) for dimension in fields["shape"])
    return _Entry(path, str(fields["dtype"]), shape, base + int(start), int(end) - int(start))
