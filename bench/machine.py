"""What machine is this, and who else used it while we measured?

Standard library only: the sides import this from environments of their own. Linux only: it reads /proc.
"""

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# The instruction sets that decide how fast bf16 and int8 products are.
_TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)
# Fields of /proc/stat's first line: user, nice, system, (idle, iowait,) irq, softirq, steal. Guest time is in user.
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class Machine:
    """``cores`` are those that this process may use; ``memory`` in bytes; ``flags`` the telling ones only."""

    cpu: str
    cores: int
    flags: tuple[str, ...]
    memory: int
    system: str


def describe() -> Machine:
    """This machine."""
    cpuinfo: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        cpuinfo.setdefault(name.strip(), value.strip())
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return Machine(
        cpu=cpuinfo.get("model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        flags=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.machine()}",
    )


def version_of(package: str) -> str:
    """An installed package's version, or that it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


@dataclass(frozen=True)
class CpuUse:
    """CPU used while something was measured, as shares (0 to 1) of all the machine's cores."""

    own: float
    foreign: float


class CpuMeter:
    """Tells the CPU time of this process and its descendants from everybody else's.

    The hypervisor's steal counts as foreign. A descendant that ends unwaited for is missed by ``own``, and so adds to
    ``foreign``. The kernel counts in ticks of 10 ms: shares over less than a second are coarse.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._all = _machine_ticks()
        self._own = _tree_ticks(os.getpid())

    def read(self) -> CpuUse:
        """The use since this meter was made."""
        busy, own = _machine_ticks() - self._all, _tree_ticks(os.getpid()) - self._own
        cores = os.cpu_count() or 1
        available = (time.monotonic() - self._began) * cores * os.sysconf("SC_CLK_TCK")
        return CpuUse(own=own / available, foreign=max(0.0, busy - own) / available)


def _machine_ticks() -> int:
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    return sum(int(fields[i]) for i in _BUSY_FIELDS)


def _tree_ticks(root: int) -> int:
    """User and system ticks of a process, of its living descendants, and of those it has waited for."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for pid, parent, used in _processes():
        children.setdefault(parent, []).append(pid)
        ticks[pid] = used
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        total += ticks.get(pid, 0)
        todo += children.get(pid, [])
    return total


def _processes() -> Iterator[tuple[int, int, int]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:  # it has just ended
            continue
        # The command, in brackets, may hold spaces and brackets; state, parent, … follow the last bracket.
        fields = stat[stat.rindex(")") + 2 :].split()
        yield int(entry.name), int(fields[1]), sum(map(int, fields[11:15]))
