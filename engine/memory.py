"""How much memory may the KV cache take?"""

from dataclasses import dataclass
from pathlib import Path

import torch

# Of what is free once the weights are loaded. The rest is for activations, and on a CPU for everybody else.
_SHARE = {"cpu": 0.5, "cuda": 0.9}
# Beyond this a CPU worker gains nothing but page faults, unless it was asked for.
_CPU_CEILING = 8 * 2**30
# A context cut below this to fit the memory would surprise more than an error does.
_SHORTEST_CONTEXT = 512


@dataclass(frozen=True, slots=True)
class KvBudget:
    """A KV pool of ``blocks`` blocks, ``bytes`` in all, why it has this size, and the context that fits it."""

    blocks: int
    bytes: int
    reason: str
    max_model_len: int


def kv_budget(
    *,
    device: str,
    bytes_per_block: int,
    block_size: int,
    longest: int,
    max_model_len: int | None,
    max_running: int,
    asked: int | None,
) -> KvBudget:
    """Size the KV pool: what was asked for, else a share of the free memory, but no more than can ever be used.

    Where no ``max_model_len`` was asked for, it is the model's ``longest`` context, or as much of it as the pool holds.

    Raises:
        ValueError: not even one request of ``max_model_len`` tokens would fit; the message says what would help.
    """
    context = max_model_len or longest
    per_request = -(-context // block_size)
    usable = per_request * max_running
    if asked is not None:
        blocks, reason = asked // bytes_per_block, "as asked"
    else:
        free = available_memory(device)
        share = int(free * _SHARE[device])
        room = min(share, _CPU_CEILING) if device == "cpu" else share
        blocks, reason = room // bytes_per_block, f"{room / free:.0%} of the {free / 2**30:.1f} GiB free"
        if blocks > usable:
            blocks, reason = usable, f"all that {max_running} requests of {context} tokens can use"
    if blocks < per_request:
        if max_model_len is not None or blocks * block_size < _SHORTEST_CONTEXT:
            needed = per_request * bytes_per_block / 2**20
            raise ValueError(
                f"a KV cache of {blocks * bytes_per_block / 2**20:.0f} MiB ({reason}) can't hold one request of "
                f"{context} tokens, which takes {needed:.0f} MiB: raise --kv-memory or lower --max-model-len"
            )
        context = blocks * block_size
    return KvBudget(blocks, blocks * bytes_per_block, reason, context)


def available_memory(device: str) -> int:
    """Bytes that could be allocated now without pushing anything out: of the GPU, or of this host or container."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    available = _meminfo_available()
    limit, used = _read_int("/sys/fs/cgroup/memory.max"), _read_int("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        available = min(available, max(0, limit - used))
    return available


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable: say how much the KV cache may take with --kv-memory")


def _read_int(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return None
