"""How fast is our engine beside others, on this machine, now?

``python -m bench.engine`` runs each side in a process of its own, one after the other, round by round, so that a
machine that slows down slows everybody. Nothing is compared that wasn't measured in the same run.
"""

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from ctypes.util import find_library
from pathlib import Path

import msgspec

from bench.engine_report import Comparison, SideRun, markdown
from bench.machine import describe
from bench.models import SHAPES
from bench.publish import publish
from bench.sides import Timing
from bench.workloads import WORKLOADS
from engine.threads import SPIN_ROUNDS

ROOT = Path(__file__).parent.parent
MODELS = ROOT / ".cache" / "bench-models"


# The program of each side, and which variant of it.
SIDES = {
    "penstock": ("penstock", "none"),
    "penstock-int8": ("penstock", "int8"),
    "vllm": ("vllm", "bfloat16"),
    "vllm-fp32": ("vllm", "float32"),
    "llamacpp": ("llamacpp", "bf16"),
    "llamacpp-q8": ("llamacpp", "q8_0"),
    "transformers": ("transformers", "bfloat16"),
    "transformers-fp32": ("transformers", "float32"),
}
OWN_PYTHON = ("vllm", "llamacpp")
"""Programs that run in environments of their own."""


class BenchError(Exception):
    """The comparison can't go on; the message says which side failed and with what."""


class _SideOutput(msgspec.Struct, frozen=True):
    versions: dict[str, str]
    timings: list[Timing]


def vllm_preloads(python: Path) -> list[Path]:
    """The libraries that make vLLM for CPU fast, as far as its environment or this system has them."""
    own = python.parent.parent / "lib"
    tcmalloc = sorted(own.glob("libtcmalloc*.so.*")) or [
        Path(name) for name in (find_library("tcmalloc_minimal"), find_library("tcmalloc")) if name
    ]
    return [*sorted(own.glob("libiomp5.so")), *tcmalloc[:1]]


def vllm_environment(python: Path) -> dict[str, str]:
    """What vLLM for CPU is told besides its options: a thread on each core, 4 GiB of KV cache, no chatter."""
    return {
        "LD_PRELOAD": ":".join(map(str, vllm_preloads(python))),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


def make_model(name: str) -> Path:
    """The folder of the random-weight model ``name``, made on first use."""
    folder = MODELS / name
    if not (folder / "model.safetensors").exists():
        _say(f"making {name} in {folder.relative_to(ROOT)}")
        _run("bench.models", Path(sys.executable), [name, str(folder)], {})
    return folder


def run_side(side: str, model: Path, args: argparse.Namespace, seed: int) -> _SideOutput:
    """Run one side once, in its own process.

    Raises:
        BenchError: it failed, or took longer than ``args.timeout`` seconds.
    """
    program, variant = SIDES[side]
    python = getattr(args, f"{program}_python") if program in OWN_PYTHON else Path(sys.executable)
    environment: dict[str, str] = {}
    if program == "vllm":
        environment = vllm_environment(python)
    elif program == "penstock":
        environment = {"GOMP_SPINCOUNT": str(SPIN_ROUNDS)}  # as its worker sets it for itself
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "timings.json"
        options = ["--model", str(model), "--seed", str(seed), "--out", str(out), "--workloads", *args.workloads]
        options += ["--variant", variant]
        if args.short:
            options.append("--short")
        _run(f"bench.sides.{program}", python, options, environment, args.timeout)
        return msgspec.json.decode(out.read_bytes(), type=_SideOutput)


def compare(args: argparse.Namespace) -> Comparison:
    """Every side on every model, ``args.rounds`` times."""
    folders = {name: make_model(name) for name in args.models}
    runs = []
    for turn in range(args.rounds):
        for model, folder in folders.items():
            for side in rotated(args.sides, turn):
                output = run_side(side, folder, args, seed=turn)
                runs.append(SideRun(model, side, turn, output.versions, output.timings))
                shown = "  ".join(
                    f"{one.workload} {one.output_tokens / one.seconds:,.0f} tok/s ({one.foreign_cpu:.0%} foreign)"
                    for one in output.timings
                )
                _say(f"round {turn + 1}/{args.rounds}  {model}  {side}  {shown}")
    return Comparison(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        command=f"python -m bench.engine {_shown_options(args)}",
        revision=_revision(),
        python=platform.python_version(),
        machine=describe(),
        preloaded=[path.name for path in vllm_preloads(args.vllm_python)] if args.vllm_python else [],
        short=args.short,
        runs=runs,
    )


def rotated(sides: Sequence[str], turn: int) -> list[str]:
    """The order of ``sides`` in round ``turn``: nobody always runs in another's wake."""
    start = turn % len(sides)
    return [*sides[start:], *sides[:start]]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--models", type=_names(SHAPES), default=list(SHAPES), help="default: tiny,small")
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS), help="default: a,b,c")
    parser.add_argument(
        "--sides",
        type=_names(SIDES),
        help=f"of {', '.join(SIDES)}; default: all for which there is a Python",
    )
    parser.add_argument("--vllm-python", type=_python, help="the Python of an environment that has vllm-cpu")
    parser.add_argument(
        "--llamacpp-python", type=_python, help="the Python of an environment that has llama-cpp-python and gguf"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one side on one model; default: 900")
    parser.add_argument("--short", action="store_true", help="a few tokens only, to see that every side works")
    parser.add_argument("--out", type=Path, help="keep the measurements in this JSON file and the page beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the page, and keep it with the measurements if asked to; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    missing = [program for program in OWN_PYTHON if getattr(args, f"{program}_python") is None]
    args.sides = args.sides or [side for side, (program, _) in SIDES.items() if program not in missing]
    for side in args.sides:
        if SIDES[side][0] in missing:
            parser.error(f"the side {side} needs --{SIDES[side][0]}-python")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        comparison = compare(args)
    except BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    page = markdown(comparison)
    print(page)
    out: Path | None = args.out
    if out:
        publish(out, comparison, page)
    return 0


def _run(
    module: str, python: Path, options: list[str], environment: dict[str, str], timeout: float | None = None
) -> None:
    command = [str(python), "-m", module, *options]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{module} did not end within {timeout:g} s") from None
    except OSError as error:
        raise BenchError(f"{python} can't be run: {error}") from error
    if done.returncode:
        raise BenchError(f"{module} exited with {done.returncode}:\n{done.stdout[-4000:]}")


def _shown_options(args: argparse.Namespace) -> str:
    """The options as anybody could give them: without this machine's paths."""
    lists = {name: ",".join(getattr(args, name)) for name in ("models", "workloads", "sides")}
    words = [word for name, text in lists.items() for word in (f"--{name}", text)]
    words += ["--rounds", str(args.rounds), *(["--short"] if args.short else [])]
    given = [f"--{program}-python …" for program in OWN_PYTHON if getattr(args, f"{program}_python") is not None]
    return " ".join([shlex.join(words), *given])


def _revision() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    names = list(known)

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(names)}")
        return chosen

    return parse


def _python(text: str) -> Path:
    path = Path(text).absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no program")
    return path


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
