"""Does an interpreted kernel round as a GPU does?

Triton's interpreter cuts float32 off where it should round it to bfloat16, and drops the carry of a rounded float8
(0.498 becomes 0.25; Triton 3.6 to 3.9). Torch's conversions, which round to nearest, ties to even, take their place, so
that an interpreted kernel may be held to the last bit.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

COMPILING = pytest.StashKey[subprocess.Popen[bytes]]()
CACHE = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to compile all kernels, a minute's work, where a test will ask for it: other tests leave a core idle."""
    wanted = any(item.path.name == "test_gpu_resources.py" for item in session.items)
    if not wanted or session.config.option.collectonly:
        return
    # An empty cache: what was compiled before would not be compiled now.
    cache = session.config.stash[CACHE] = tempfile.TemporaryDirectory()
    with Path(cache.name, "out").open("wb") as out, Path(cache.name, "err").open("wb") as err:
        session.config.stash[COMPILING] = subprocess.Popen(
            ["nice", "-n", "19", sys.executable, "-m", "tests.kernels.gpu_resources"],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"TRITON_CACHE_DIR": str(Path(cache.name, "triton"))},
            stdout=out,
            stderr=err,
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whoever interrupts the tests doesn't wait for the compiler."""
    if COMPILING in config.stash:
        config.stash[COMPILING].kill()
        config.stash[COMPILING].wait()
        config.stash[CACHE].cleanup()


@pytest.fixture(scope="session", autouse=True)
def rounded_to_nearest() -> Iterator[None]:
    """Replaces the interpreter's conversion between floating-point types, where kernels are interpreted."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    import triton.language as tl

    types = {
        tl.float64: torch.float64,
        tl.float32: torch.float32,
        tl.float16: torch.float16,
        tl.bfloat16: torch.bfloat16,
        tl.float8e4nv: torch.float8_e4m3fn,
        tl.float8e5: torch.float8_e5m2,
    }
    original = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if source not in types or target not in types or mode == interpreter._ir.ROUNDING_MODE.RTZ:
            return original(data, source, target, mode)
        bits = torch.from_numpy(np.array(data).reshape(-1).view(np.uint8))
        result = bits.view(types[source]).to(types[target]).view(torch.uint8).numpy()
        return result.view(f"uint{target.primitive_bitwidth}").reshape(data.shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", convert)
        yield


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """Where Triton kernels run: on a CPU where they are interpreted."""
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
