"""What does each Triton kernel need of a GPU? ``python -m tests.kernels.gpu_resources [--write]`` compiles and tells.

Every call in `tests.kernels.gpu_calls` is compiled for Hopper and, where it can run there, Ampere. `fake_gpu` does it,
so that no GPU is needed. ``--write`` keeps the answer in gpu_resources.json, which the tests hold the kernels to.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.kernels import gpu_calls

TABLE: Final = Path(__file__).with_suffix(".json")
ARCHITECTURES: Final = (90, 80)
_PROCESSES: Final = 2


@dataclass(frozen=True, slots=True)
class Row:
    """What one kernel of one call needs: see `tests.kernels.fake_gpu.Resources`."""

    operation: str
    call: str
    kernel: str
    arch: int
    registers: int
    spilled: int
    shared: int
    warps: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.operation, self.call, self.kernel, self.arch


@dataclass(slots=True)
class Answer:
    """What became of calls: a row for each kernel, a line for each call that failed, seconds for each that didn't.

    ``triton`` is the version that compiled them: what the same kernel takes differs from one to the next.
    """

    triton: str = version("triton")
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Answer") -> None:
        self.rows += other.rows
        self.failures += other.failures
        self.seconds |= other.seconds

    def as_text(self) -> str:
        """JSON, a kernel a line."""
        lines = [json.dumps(asdict(row)) for row in sorted(self.rows, key=lambda row: row.key)]
        kernels = "".join(f"\n  {line}," for line in lines).removesuffix(",")
        head = f'"triton": {json.dumps(self.triton)}, "failures": {json.dumps(self.failures)}'
        return f'{{{head}, "kernels": [{kernels}\n]}}\n'


def read(text: str) -> Answer:
    """What `Answer.as_text` wrote."""
    content = json.loads(text)
    return Answer(content["triton"], [Row(**row) for row in content["kernels"]], content["failures"])


def operations() -> list[str]:
    """The operations that have calls to compile."""
    return [module.name for module in pkgutil.iter_modules(gpu_calls.__path__)]


def measure(operation: str, arch: int) -> Answer:
    """Compile an operation's calls for an architecture, in a process that doesn't interpret kernels."""
    answer = Answer()
    try:
        for label, oldest, call in importlib.import_module(f"tests.kernels.gpu_calls.{operation}").calls():
            name = f"{operation}: {label} (sm_{arch})"
            if arch < oldest:
                continue
            if name in answer.seconds:
                raise ValueError(f"two calls are labelled {label!r}")
            started = time.perf_counter()
            try:
                answer.rows += _rows(operation, label, arch, call)
            except Exception as error:  # whatever it is, the other calls are to be seen as well
                answer.failures.append(f"{name}: {type(error).__name__}: {error}")
            answer.seconds[name] = time.perf_counter() - started
    except Exception as error:
        answer.failures.append(f"{operation}: {type(error).__name__}: {error}")
    return answer


def _rows(operation: str, label: str, arch: int, call: Callable[[], object]) -> Iterator[Row]:
    """A row for each kernel that the call launches; of several variants of one, what the greediest takes."""
    from tests.kernels.fake_gpu import pretend

    with pretend(arch) as driver:
        call()
    if not driver.launched:
        raise ValueError("launched no kernel")
    for kernel in dict.fromkeys(one.kernel for one in driver.launched):
        variants = [one for one in driver.launched if one.kernel == kernel]
        registers, spilled, shared, warps = (
            max(getattr(one, name) for one in variants) for name in ("registers", "spilled", "shared", "warps")
        )
        yield Row(operation, label, kernel, arch, registers, spilled, shared, warps)


def measure_all() -> Answer:
    """Compile everything, in processes of their own, because whether kernels are interpreted is settled at import."""
    os.environ.pop("TRITON_INTERPRET", None)
    answer = Answer()
    with ProcessPoolExecutor(_PROCESSES, multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(measure, operation, arch) for operation in operations() for arch in ARCHITECTURES]
        for task in tasks:
            answer.add(task.result())
    return answer


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"keep the answer in {TABLE.name}")
    write = parser.parse_args(arguments).write
    answer = measure_all()
    print(answer.as_text(), end="")
    for name, seconds in sorted(answer.seconds.items(), key=lambda item: -item[1])[:10]:
        print(f"{seconds:5.1f} s {name}", file=sys.stderr)
    print(f"{sum(answer.seconds.values()):5.1f} s in all, {len(answer.failures)} calls failed", file=sys.stderr)
    for failure in answer.failures:
        print(failure, file=sys.stderr)
    if write and not answer.failures:
        TABLE.write_text(answer.as_text())
    return len(answer.failures) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
