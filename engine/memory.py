"""How much memory may the KV cache take?"""

from dataclasses import dataclass
from pathlib import Path

import torch

# Of what is free once the weights are loaded. The rest is for activations, and for everybody else.
_CPU_SHARE = 0.5
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
    gpu_share: float = 0.9,
    step_bytes: int = 0,
) -> KvBudget:
    """Size the KV pool: what was asked for, else a share of the memory, but no more than can ever be used.

    On a CPU it is a share of what is free. On a GPU the worker as a whole takes ``gpu_share`` of it: weights are there
    already, and the largest step needs ``step_bytes``.

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
        room, reason = _gpu_room(gpu_share, step_bytes) if device == "cuda" else cpu_room()
        blocks = room // bytes_per_block
        if blocks > usable:
            blocks, reason = usable, f"all that {max_running} requests of {context} tokens can use"
    if blocks < per_request:
        if max_model_len is not None or blocks * block_size < _SHORTEST_CONTEXT:
            has, needed = (count * bytes_per_block / 2**20 for count in (max(0, blocks), per_request))
            raise ValueError(
                f"a KV cache of {has:.0f} MiB ({reason}) can't hold one request of {context} tokens, which takes "
                f"{needed:.0f} MiB: raise --kv-memory or lower --max-model-len"
            )
        context = blocks * block_size
    return KvBudget(blocks, blocks * bytes_per_block, reason, context)


def _gpu_room(share: float, step_bytes: int) -> tuple[int, str]:
    """What is left of the worker's ``share`` of the GPU, and how that comes about."""
    free, total = torch.cuda.mem_get_info()
    room = int(total * share) - (total - free) - step_bytes
    return room, (
        f"{share:.0%} of the GPU's {total / 2**30:.1f} GiB, less {(total - free) / 2**30:.1f} in use"
        f" and {step_bytes / 2**30:.1f} for the largest step"
    )


def cpu_room() -> tuple[int, str]:
    """Bytes that a KV cache in main memory may take, and how that comes about."""
    free = available_memory()
    room = min(int(free * _CPU_SHARE), _CPU_CEILING)
    return room, f"{room / free:.0%} of the {free / 2**30:.1f} GiB free"


def available_memory() -> int:
    """Bytes that could be allocated now, on this host or in this container, without pushing anything out."""
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
