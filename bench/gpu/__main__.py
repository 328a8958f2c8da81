"""How is the GPU benchmark run? ``python -m bench.gpu``: see ``--help``.

The measuring is done in a process of its own. A kernel that reads where nothing is leaves its process unable to use the
GPU, and one that never ends leaves it stuck: then the case is noted as failed, and another process takes up the rest.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numba
import torch

from bench.gpu import attention, ceilings, check, engine, kernels
from bench.gpu.ceilings import Card
from bench.gpu.models import MODELS
from bench.gpu.report import DONE, JSON_FILE, PAGE_FILE, UNDER_WAY, Case, Record, Skipped, machine

RESULTS: Final = Path(__file__).parent.parent / "results"
PARTS: Final = ("checks", "kernels", "engine")
# Seconds without any news after which a process counts as stuck, and that it may take beyond its time.
_STALL: Final = 180.0
_GRACE: Final = 25.0
_BROKEN: Final = 3
_OUT_OF_TIME: Final = "not measured: out of time"

DESCRIPTION: Final = """\
Measure our kernels and our engine on this machine's GPU, beside what the GPU can do at most.

Nothing is downloaded: models have the shapes of real ones and random weights. The parts run in the order of their
importance: a copy and a matrix product (the ceilings, always), comparisons with the references, attention of decodes,
the speed of Qwen3-0.6B and of Llama-3.1-8B, then all other kernels, and what each idea of the engine brings. What fails
is noted and doesn't keep the rest from running; what no longer fits the time is listed as not measured. Results are
written after each case, so that a run that is stopped leaves what it had."""
EXAMPLES: Final = """\
examples:
  python -m bench.gpu                                 everything, into bench/results
  python -m bench.gpu --only checks                   does it compute what it should?
  python -m bench.gpu --only engine --models qwen3-0.6b
  python -m bench.gpu --quick                         tiny shapes: does the program itself work?
  python -m bench.gpu --quick --device cpu            the same on a machine without a GPU
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=f"of {', '.join(PARTS)}; default: all",
    )
    real = [name for name in MODELS if name != "toy"]
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(MODELS),
        metavar="MODEL",
        help=f"for the engine, of {', '.join(MODELS)}; default: {' '.join(real)} (with --quick: toy)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes: to try the program")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda; cpu only together with --quick"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"where {JSON_FILE} and {PAGE_FILE} go; default: bench/results (with --quick: nowhere)",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, start included; default: 9")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # what the second process is told
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print the table; returns the exit status: 1 if a comparison or a case failed."""
    begin = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.quick:
        parser.error("--device cpu needs --quick: real shapes would take hours")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; to try the program without one: --quick --device cpu")
    args.models = args.models or (["toy"] if args.quick else [name for name in MODELS if name != "toy"])
    if args.measure:
        return measure(args, Record.load(args.out), begin + 60 * args.minutes)
    with tempfile.TemporaryDirectory() as scratch:
        args.out = args.out or (Path(scratch) if args.quick else RESULTS)
        if args.device == "cpu":
            record = Record()
            with _one_thread():
                measure(args, record, begin + 60 * args.minutes)
        else:
            command = [sys.executable, "-m", "bench.gpu", *argv, "--measure", "--out", str(args.out)]
            record = supervise(command, args.out, begin + 60 * args.minutes)
    print(record.page())
    failed = any(outcome.startswith("failed") for outcome in record.cases.values())
    return int(failed or not all(check.ok for check in record.checks.values()))


def every_case(card: Card, args: argparse.Namespace) -> Iterator[Case]:
    """All cases, the most important first."""
    yield from ceilings.cases(card)
    yield from check.cases(card)
    yield from attention.decode_cases(card)
    yield from engine.cases(card, args.models, first=True)
    yield from attention.prefill_cases(card)
    yield from kernels.cases(card)
    yield from engine.cases(card, args.models, first=False)


def measure(args: argparse.Namespace, record: Record, deadline: float) -> int:
    """Run the cases of which the record has nothing, and write it after each; returns what the process exits with."""
    device = torch.device(args.device)
    record.machine = machine(args.device)
    for case in every_case(Card(device, record.figures, quick=args.quick), args):
        if case.part not in ("ceilings", *args.only) or case.title in record.cases:
            continue
        if deadline - time.monotonic() < case.seconds:
            record.cases[case.title] = _OUT_OF_TIME
            continue
        record.cases[case.title] = UNDER_WAY
        record.write(args.out)
        _tidy(device)
        begin = time.monotonic()
        record.cases[case.title] = outcome = _run(case, record, args.out)
        _say(f"{case.title}: {outcome} ({time.monotonic() - begin:.1f} s)")
        if outcome.startswith("failed") and _broken(device):
            record.write(args.out)
            return _BROKEN
    record.write(args.out)
    return 0


def supervise(command: Sequence[str], folder: Path, deadline: float) -> Record:
    """Have the cases run by a process, and by another one when that dies or hangs; what they left in ``folder``."""
    Record().write(folder)
    while True:
        left = (deadline - time.monotonic()) / 60
        # What it prints is not the table: stdout is for that.
        process = subprocess.Popen([*command, "--minutes", f"{left:.3f}"], stdout=2)
        why = _watch(process, folder / JSON_FILE, deadline + _GRACE)
        record = Record.load(folder)
        if why is None:
            return record
        _say(why)
        stopped = [title for title, outcome in record.cases.items() if outcome == UNDER_WAY]
        for title in stopped:
            record.cases[title] = why if why == _OUT_OF_TIME else f"failed: {why}"
        record.write(folder)
        done_something = stopped or process.returncode == _BROKEN
        if time.monotonic() > deadline or not done_something:
            return record


def _watch(process: "subprocess.Popen[bytes]", news: Path, last: float) -> str | None:
    """Wait for a process, as long as it goes on writing ``news``; why it ended, or None if it was done."""
    while True:
        try:
            status = process.wait(1)
        except subprocess.TimeoutExpired:
            silent = time.time() - news.stat().st_mtime
            if silent <= _STALL and time.monotonic() <= last:
                continue
            process.kill()
            process.wait()
            return f"nothing came for {silent:.0f} s" if silent > _STALL else _OUT_OF_TIME
        return f"its process ended with status {status}" if status else None


def _run(case: Case, record: Record, folder: Path) -> str:
    """Run a case and take in what it yields; its outcome."""
    try:
        for result in case.run():
            record.add(result)
            record.write(folder)
    except Skipped as reason:
        return f"skipped: {reason}"
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return f"failed: {type(error).__name__}: {lines[0][:300]}"
    return DONE


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than tiny shapes do."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def _tidy(device: torch.device) -> None:
    """Let go of what the case before has left."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _broken(device: torch.device) -> bool:
    """Whether this process can't use the GPU any more."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
