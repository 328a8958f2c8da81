"""What would a fleet do with this workload? ``penstock bench simulate`` and its options."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.load import workload
from bench.publish import publish
from scheduler.policies import POLICIES

if TYPE_CHECKING:
    from bench.load.workload import Load
    from bench.simulate.fleet import Progress
    from bench.simulate.machines import Machine
    from bench.simulate.worker import Setting

_MACHINE: Final = "h200/llama-3.1-8b"
_LINE_PERIOD: Final = 5.0
_PRODUCTION: Final = tuple(name for name in POLICIES if name != "round-robin")
_EPILOG: Final = """\
examples:
  penstock bench simulate --arrivals poisson:12 --requests 5000 --input lognormal:1000,0.9 --slo ttft=1s,tpot=50ms
  penstock bench simulate --trace mooncake.jsonl --workers 8 --placement prefix-hash --out run1
  penstock bench simulate --record-steps steps.jsonl --arrivals closed:8 --requests 100 --input 256 --output 64
  penstock bench simulate --calibrate steps.jsonl --out mine.json
  penstock bench simulate --machine mine.json --arrivals closed:8 --requests 100 --input 256 --output 64"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put what ``penstock bench simulate`` takes on ``parser``."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    workload.add_arguments(parser)
    _add_fleet(parser)
    _add_scheduling(parser)
    group = parser.add_argument_group("what is kept")
    group.add_argument(
        "--slo", metavar="BOUNDS", help="what makes a request good, such as ttft=500ms,tpot=50ms; default: none"
    )
    group.add_argument("--title", default="", metavar="TEXT", help="the run's name in reports; default: the workload")
    group.add_argument(
        "--interval",
        type=_positive(float),
        default=10.0,
        metavar="SECONDS",
        help="of simulated time, from one look at the fleet to the next, for series.json (default: 10)",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="keep the requests (records.jsonl), the summary (summary.json, summary.txt), the fleet over time "
        "(series.json) and the report in this folder; with --calibrate, --validate and figures, the file to write. "
        "Default: only print the summary",
    )
    _add_modes(parser)


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the fleet")
    add = group.add_argument
    add(
        "--machine",
        default=_MACHINE,
        metavar="NAME",
        help="how long steps take: h200, h100 or a100, a slash, and llama-3.1-8b, qwen3-0.6b or llama-3.1-70b-tp8; or "
        f"a file that --calibrate wrote (default: {_MACHINE})",
    )
    add("--workers", type=_positive(int), default=1, metavar="N", help="how many there are, all alike (default: 1)")
    add(
        "--placement",
        choices=("round-robin", "least-outstanding", "prefix-hash", "match-minus-load", *_PRODUCTION),
        default="round-robin",
        help="which worker gets a request. Rules that see the workers as they are: the next; the one with the fewest "
        "tokens under way; by a hash of the prompt's first 1,024 tokens; or the one with the fewest prompt tokens to "
        f"compute, cached ones left out. As penstock serve does it, on late news: {', '.join(_PRODUCTION)} "
        "(default: round-robin)",
    )
    add(
        "--block-size",
        type=_positive(int),
        default=16,
        metavar="TOKENS",
        help="of a KV block; larger ones simulate faster and find a little less in the cache (default: 16)",
    )
    add("--kv-tokens", type=_positive(int), metavar="N", help="a worker's KV cache holds; default: the machine's")
    add(
        "--max-model-len",
        type=_positive(int),
        default=131_072,
        metavar="TOKENS",
        help="prompt and answer together; longer requests fail (default: 131072)",
    )
    add(
        "--max-tokens",
        type=_positive(int),
        metavar="TOKENS",
        help="what every request asks for; it stops by itself where the workload says. Default: it asks for what it "
        "gets, as a load test does, so that the scheduler knows how long each answer will be",
    )
    add(
        "--jitter",
        type=_positive(float),
        metavar="SHARE",
        help="by about how much a step's time varies at random; default: the machine's, which is 0 for named ones",
    )


def _add_scheduling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the scheduler")
    group.add_argument(
        "--scheduling",
        default="ours",
        metavar="NAME",
        help="ours, fcfs-2048, fcfs-8192 (vLLM's way), longest-prefix (SGLang's), sarathi-512, or 'without IDEA' "
        "where IDEA is time_budget, deadlines, fairness, order, lookahead or prefix_cache (default: ours)",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting of the scheduler, such as max_running=64 or fairness=off; may be repeated",
    )
    group.add_argument(
        "--tenants",
        choices=("one", "groups"),
        default="one",
        help="whose requests they are: all one tenant's, or each prefix group's its own (default: one)",
    )


def _add_modes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model of a step").add_mutually_exclusive_group()
    group.add_argument(
        "--record-steps",
        type=Path,
        metavar="FILE",
        help="don't simulate: let the real engine serve the workload on this machine's CPU, in real time, and write "
        "each step's work and seconds, as JSON lines",
    )
    group.add_argument(
        "--calibrate",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="don't simulate: fit a machine to such logs, print how well it fits, and write it to --out",
    )
    group.add_argument(
        "--validate",
        action="store_true",
        help="don't just simulate: serve three workloads with the real engine on this machine's CPU as well, and print "
        "what was predicted beside what was measured; half a minute a round on an idle machine",
    )
    group.add_argument(
        "--figures",
        type=Path,
        nargs="*",
        metavar="TRACE",
        help="compare all ways of scheduling one worker, with the lengths of these traces (default: made up); half "
        "an hour for two traces and 4,000 requests",
    )
    parser.add_argument(
        "--measured",
        action="store_true",
        help="--figures: let the real engine serve on this machine's CPU instead, in real time; --machine should be "
        "like it, for it says at which rates to begin",
    )
    parser.add_argument(
        "--only", metavar="NAME,…", help="--figures: compare these ways of scheduling; default: all that there are"
    )
    parser.add_argument(
        "--rounds",
        type=_positive(int),
        default=5,
        metavar="N",
        help="--validate: how often everything is measured; medians count (default: 5)",
    )
    group.add_argument(
        "--placement-figures",
        type=Path,
        nargs="*",
        metavar="TRACE",
        help="compare ways of placing requests on --workers that schedule as --scheduling says, others' as well, on "
        "these traces and on made-up chats and documents; hours if all is wanted: see --runs",
    )
    _add_placement_figures(parser)
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="what --record-steps and --validate run: a folder in Hugging Face format, or tiny or small, which are "
        "made on first use; default: the demo model",
    )


def _add_placement_figures(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what --placement-figures compares").add_argument
    add(
        "--runs",
        type=Path,
        metavar="FILE",
        help="keep each run in FILE as a line of JSON when it is done, and don't repeat those that are there: so a "
        "comparison is made by as many commands as one likes, and the page of --out is of all of them",
    )
    add("--seconds", type=_positive(float), metavar="N", help="begin no run after so many seconds")
    add("--loads", type=_numbers, default=(0.5, 0.8, 0.9, 1.0), metavar="N,…", help="default: 0.5,0.8,0.9,1.0")
    add(
        "--caches",
        type=_numbers,
        default=(200_000, 900_000),
        metavar="TOKENS,…",
        help="what a worker's KV cache holds (default: 200000,900000)",
    )
    add("--workloads", metavar="NAME,…", help="the stem of a trace's file, chats or documents; default: all")
    add("--policies", metavar="NAME,…", help="ours and others', by their names in the tables; default: all")


def run(args: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    from engine.config import ModelFault, UnsupportedModel

    try:
        if args.record_steps is not None:
            return _record_steps(args)
        if args.calibrate is not None:
            return _calibrate(args)
        if args.validate:
            return _validate(args)
        if args.figures is not None:
            return _figures(args)
        if args.placement_figures is not None:
            return _placement_figures(args)
        return _simulate(args)
    except (ModelFault, UnsupportedModel, OSError) as error:
        return _fail(str(error), 1)
    except (ValueError, OverflowError) as error:
        return _fail(str(error), 2)


def _simulate(args: argparse.Namespace) -> int:
    from rich.console import Console

    from bench.load.run import report
    from bench.load.summary import parse_slo, render
    from bench.simulate.run import extras_text, simulate

    slo = parse_slo(args.slo) if args.slo else None
    if args.out is not None and args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty: name another folder with --out")
    load = workload.from_args(args, prompts=False)
    setting = setting_of(args)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or Path(scratch)
        summary, extras = simulate(args, load, setting, slo, folder, _Shown(load))
        Console(highlight=False).print(render(summary))
    print(extras_text(extras), end="")
    if args.out is not None:
        report(args.out)
    return 0 if summary.outcomes.get("ok") else _fail("no request was answered", 1)


def setting_of(args: argparse.Namespace) -> "Setting":
    """The workers that the options describe.

    Raises:
        ValueError: they describe none that can be.
    """
    from bench.simulate.machines import find
    from bench.simulate.settings import changed, scheduling
    from bench.simulate.worker import Setting

    machine = _altered(find(args.machine), args)
    if machine.kv_tokens < args.block_size:
        raise ValueError(f"a KV cache of {machine.kv_tokens} tokens holds no block of {args.block_size}")
    return Setting(
        machine=machine,
        config=changed(scheduling(args.scheduling), args.set),
        block_size=args.block_size,
        max_len=args.max_model_len,
        max_tokens=args.max_tokens,
        seed=args.seed,
        fair=args.tenants == "groups",
    )


def _altered(machine: "Machine", args: argparse.Namespace) -> "Machine":
    import msgspec

    changes = {name: value for name in ("kv_tokens", "jitter") if (value := getattr(args, name)) is not None}
    return msgspec.structs.replace(machine, **changes)


def _record_steps(args: argparse.Namespace) -> int:
    from bench.simulate.calibrate import write_log

    load = workload.from_args(args, prompts=False)
    worker = _real(args)
    measured = worker.run(load, setting_of(args).config)
    write_log(args.record_steps, measured.steps)
    _say(f"{len(measured.steps):,} steps and {len(measured.records):,} requests; steps in {args.record_steps}")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from bench.simulate.calibrate import fit, read_log
    from bench.simulate.machines import save

    steps = [step for path in args.calibrate for step in read_log(path)]
    found = fit(steps, "calibrated", args.kv_tokens or 65_536)
    print(found)
    print(found.machine)
    if args.out is not None:
        save(found.machine, args.out)
    return 0


def _validate(args: argparse.Namespace) -> int:
    from bench.simulate.validate import page, validate

    result = validate(_real(args), _say, seed=args.seed, rounds=args.rounds)
    return _keep(args.out, result, page(result))


def _figures(args: argparse.Namespace) -> int:
    from bench.simulate.figures import Judge, MeasuredJudge, SimulatedJudge, compare, page, sources
    from bench.simulate.machines import find
    from bench.simulate.settings import SETTINGS, scheduling

    machine, config = _altered(find(args.machine), args), setting_of(args).config
    judge: Judge = SimulatedJudge(machine=machine, seed=args.seed, config=config)
    names = args.only.split(",") if args.only else list(SETTINGS)
    for name in names:
        scheduling(name)
    if args.measured:
        name = args.model or "the demo model"
        judge = MeasuredJudge(worker=_real(args), model=name, seed=args.seed, config=config)
    found = sources(args.figures, args.requests, machine, args.most_input, args.most_output)
    result = compare(judge, found, _say, names)
    return _keep(args.out, result, page(result))


def _placement_figures(args: argparse.Namespace) -> int:
    from bench.simulate.machines import find
    from bench.simulate.others import OTHERS
    from bench.simulate.placement_figures import page
    from bench.simulate.placement_runs import Kept, Wanted, fill, sources

    kept = Kept(args.runs)
    machine = _altered(find(args.machine), args)
    wanted = Wanted(
        machine=machine,
        sources=sources(args.placement_figures, args.workloads.split(",") if args.workloads else ()),
        caches=[int(tokens) for tokens in args.caches],
        policies=args.policies.split(",") if args.policies else [*POLICIES, *OTHERS],
        loads=args.loads,
        scheduling=args.scheduling,
        workers=max(args.workers, 2),
        requests=args.requests or 3000,
        seed=args.seed,
    )
    complete = fill(wanted, kept, _say, args.seconds)
    text = page(kept, machine.name)
    print(text, end="")
    if args.out is not None:
        args.out.write_text(text)
    if not complete:
        _say("there is more to do: give the same command again")
    return 0


def _keep(out: Path | None, result: Any, page: str) -> int:
    """Print a page, and keep the figures as JSON and the page beside them."""

    print(page, end="")
    if out is not None:
        publish(out, result, page)
    return 0


def _real(args: argparse.Namespace) -> Any:
    from engine.threads import bound_spinning

    bound_spinning()
    from bench.engine import make_model
    from bench.models import SHAPES
    from bench.simulate.measure import RealWorker
    from engine.config import resolve_model

    folder = make_model(args.model) if args.model in SHAPES else resolve_model(args.model)
    return RealWorker(folder, block_size=args.block_size)


class _Shown:
    """Shows progress on the error output: a line that changes on a terminal, else one every few seconds."""

    def __init__(self, load: "Load") -> None:
        self._requests = load.requests
        self._began = self._said = time.monotonic()
        self._live = sys.stderr.isatty()

    def __call__(self, progress: "Progress") -> None:
        now = time.monotonic()
        if now - self._said < (0.25 if self._live else _LINE_PERIOD):
            return
        self._said = now
        of = f" of {self._requests:,}" if self._requests else ""
        text = (
            f"simulated {progress.now:,.0f} s in {now - self._began:,.0f} s: {progress.ended:,}{of} requests answered, "
            f"{progress.begun - progress.ended:,} under way"
        )
        print(f"\r{text}\x1b[K" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(f"penstock bench simulate: {text}", file=sys.stderr, flush=True)


def _fail(text: str, status: int) -> int:
    _say(f"error: {text}")
    return status


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_positive(float)(part) for part in text.split(","))


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole number' if kind is int else 'number'} above 0")
        return value

    return parse
