"""A GPU that isn't there: kernels are compiled for it, to machine code, and their launches do nothing.

`pretend` lets the very functions that production calls run on CPU tensors: what Triton specialises a kernel on, its
constants, its alignments, comes from the real call. What is learnt of each kernel is what the machine code says:
registers, spilled bytes, shared memory. Must run in a process that doesn't interpret.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

# What one block may have at most, in bytes.
SHARED_LIMIT: Final = {90: 227 * 1024, 80: 163 * 1024}
_OBJDUMP: Final = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled kernel needs: registers a thread, bytes spilled a thread, shared bytes a block, warps a block."""

    kernel: str
    registers: int
    spilled: int
    shared: int
    warps: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# Every kernel that was compiled; its place in the list is what Triton takes for the function's address. Triton keeps
# kernels for as long as the process lives, longer than a driver is installed.
_kernels: list[Resources] = []


class FakeDriver:
    """What Triton's run time asks of a driver.

    ``compiled`` are the kernels that were compiled while it was installed, ``launched`` those that were launched.
    """

    def __init__(self, arch: int) -> None:
        self.compiled: list[Resources] = []
        self.launched: list[Resources] = []
        self._arch = arch
        self.utils = SimpleNamespace(
            load_binary=self._load,
            unload_module=lambda module: None,
            get_device_properties=lambda device: {
                "max_shared_mem": SHARED_LIMIT[arch],
                "multiprocessor_count": 132,
                "warpSize": 32,
            },
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        self._warps = metadata.num_warps

        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            driver.active.launched.append(_kernels[function])

        return launch

    def get_current_device(self) -> int:
        return self._arch  # what is compiled is kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def is_active() -> bool:
        return True

    def _load(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        registers, spilled = _usage(cubin)
        _kernels.append(Resources(name, registers, spilled, shared, self._warps))
        self.compiled.append(_kernels[-1])
        return 1, len(_kernels) - 1, registers, spilled // 4, 1024


@contextmanager
def pretend(arch: int) -> Iterator[FakeDriver]:
    """Let Triton believe in a GPU of this architecture (90 is Hopper's, 80 Ampere's)."""
    fake = FakeDriver(arch)
    driver.set_active(fake)
    try:
        yield fake
    finally:
        driver._active = None


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers of each thread, and the bytes of its stack, which is where spilled registers go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _objdump("-res-usage", file.name)
        found = re.search(r"REG:(\d+) STACK:(\d+)", text)
        assert found is not None, text
        registers, stack = int(found[1]), int(found[2])
        # A stack that nothing is stored to is a called function's: no register was spilled.
        spilled = stack if stack and re.search(r"\bSTL\b", _objdump("-sass", file.name)) else 0
    return registers, spilled


def _objdump(option: str, path: str) -> str:
    return subprocess.run([_OBJDUMP, option, path], capture_output=True, text=True, check=True).stdout
