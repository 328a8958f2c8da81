"""Which router serves a real trace best, in front of the same workers? ``python -m bench.routers`` measures it.

Every side gets new workers with empty caches and the same requests at the same times, sides take turns, and all of it
happens on one machine: workers, router and client together must leave it idle for part of the time, or the figures are
the machine's. Each run's share of its CPU is printed. A measurement that was interrupted goes on with ``--resume``.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from bench.load import run as load
from bench.load.client import Api
from bench.load.measure import Plan, measure
from bench.load.processes import read_parts
from bench.load.records import Record
from bench.machine import CpuMeter, describe
from bench.publish import publish
from bench.routers import sides as sides_
from bench.routers.figures import Judging, Run, Use, imbalance, judge
from bench.routers.fleet import MODEL, FleetError, Process, Worker, router, workers
from bench.routers.report import Results, Setting, markdown
from bench.routers.sides import Side

_OURS: Final = ("held", "immediate", "round-robin")
_SGLANG: Final = ("cache_aware", "round_robin")
_VLLM: Final = ("cache_aware", "kv_aware", "round_robin")
_TIMEOUT: Final = 300.0  # seconds until a request is given up
_LATE: Final = 0.05
_RESULTS: Final = Path(__file__).parent.parent / "results" / "routers.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is left to measure; the exit status."""
    args = _parser().parse_args(argv)
    try:
        sides = [(side, sides_.version(side)) for side in _sides(args)]
        results = _before(args, _setting(args))
        for side, version, number in _left(sides, args, results):
            run = _measure(args, side, version, number, results.setting)
            print(f"{side.name}, round {number}: {_line(run)}", flush=True)
            if run.use.lost > args.lost_bound:
                raise FleetError(f"the workers were too slow, by {run.use.lost:.1%} of the time: this run isn't kept")
            results.runs.append(run)
            _write(args.out, results)
    except (FleetError, ValueError, OSError) as error:
        print(f"bench.routers: {error}", file=sys.stderr)
        return 1
    print(markdown(results) if results.runs else "nothing was measured")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.routers", description=__doc__)
    add = parser.add_argument
    add("--trace", type=Path, required=True, metavar="FILE", help="what is asked: a trace with blocks, as Mooncake's")
    add("--trace-speed", type=float, default=12.0, metavar="FACTOR", help="so many times as fast (default: 12)")
    add("--requests", type=int, default=1500, metavar="N", help="the trace's first so many (default: 1500)")
    add("--most-input", type=int, default=32_768, metavar="TOKENS", help="cut longer prompts (default: 32768)")
    add("--most-output", type=int, default=512, metavar="TOKENS", help="cut longer answers (default: 512)")
    add("--workers", type=int, default=4, metavar="N", help="simulated workers (default: 4)")
    add("--machine", default="h200/llama-3.1-8b", metavar="NAME", help="what they simulate")
    add("--speed", type=float, default=4.0, metavar="FACTOR", help="so many times as fast (default: 4)")
    add("--kv-tokens", type=int, default=400_000, metavar="N", help="each one's KV cache (default: 400000)")
    add("--scheduling", default="ours", metavar="NAME", help="how they schedule (default: ours)")
    add("--warm-up", type=float, default=0.1, metavar="SHARE", help="requests not judged (default: 0.1)")
    add("--policy", action="append", metavar="NAME", help=f"ours; default: {', '.join(_OURS)}")
    add("--sglang-router", metavar="PYTHON", help="the Python that has sglang-router; default: without it")
    add("--sglang-policy", action="append", metavar="NAME", help=f"default: {', '.join(_SGLANG)}")
    add("--vllm-router", metavar="PYTHON", help="the Python that has vllm-router; default: without it")
    add("--vllm-policy", action="append", metavar="NAME", help=f"default: {', '.join(_VLLM)}")
    add("--rounds", type=int, default=3, metavar="N", help="how often each side is measured (default: 3)")
    add(
        "--lost-bound",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="end if the workers were too slow to simulate what they should for more of the time than this, because "
        "of what else runs on the machine (default: 0.02)",
    )
    add("--most-runs", type=int, metavar="N", help="stop after so many runs; --resume goes on; default: all")
    add("--resume", action="store_true", help="keep the runs that --out has, and measure what is missing")
    add("--out", type=Path, default=_RESULTS, metavar="FILE", help="JSON; the table goes beside it, as Markdown")
    return parser


def _sides(args: argparse.Namespace) -> list[Side]:
    found = [sides_.penstock(policy) for policy in args.policy or _OURS]
    if args.sglang_router:
        found += [sides_.sglang_router(args.sglang_router, policy) for policy in args.sglang_policy or _SGLANG]
    if args.vllm_router:
        found += [sides_.vllm_router(args.vllm_router, policy, MODEL) for policy in args.vllm_policy or _VLLM]
    return found


def _setting(args: argparse.Namespace) -> Setting:
    machine = describe()
    # The words of `bench.load.prompts` have five bytes with the space behind them: a word is a token.
    options = ["--machine", args.machine, "--speed", f"{args.speed:g}", "--kv-tokens", f"{args.kv_tokens}"]
    asked = ["--trace", args.trace.name, "--speed", f"{args.trace_speed:g}", "--requests", f"{args.requests}"]
    asked += ["--most-input", f"{args.most_input}", "--most-output", f"{args.most_output}"]
    return Setting(
        workers=args.workers,
        speed=args.speed,
        warm_up=args.warm_up,
        worker_options=[*options, "--scheduling", args.scheduling, "--token-bytes", "5"],
        load_options=[*asked, "--spread", "--plain", "--quickack"],
        workload=f"Asked: {args.trace.name} x {args.trace_speed:g}, its first {args.requests:,} requests, cut to "
        f"{args.most_input:,} tokens in and {args.most_output:,} out",
        machine=f"{machine.cores} cores, {machine.cpu}",
    )


def _before(args: argparse.Namespace, setting: Setting) -> Results:
    """The results to go on with.

    Raises:
        ValueError: those that are there were taken under another setting.
    """
    if not args.resume or not args.out.exists():
        return Results(setting=setting, runs=[])
    found = msgspec.json.decode(args.out.read_bytes(), type=Results)
    if found.setting != setting:
        raise ValueError(f"{args.out} was measured with other options: name another file, or leave --resume out")
    return found


def _left(
    sides: Sequence[tuple[Side, str]], args: argparse.Namespace, results: Results
) -> Iterator[tuple[Side, str, int]]:
    """What is to be measured: side by side, round by round, each round beginning with another side."""
    done = {(run.side, run.round) for run in results.runs}
    left = (
        (*sides[(place + number) % len(sides)], number + 1)
        for number in range(args.rounds)
        for place in range(len(sides))
    )
    count = 0
    for side, version, number in left:
        if (side.name, number) not in done and count != args.most_runs:
            count += 1
            yield side, version, number


def _measure(args: argparse.Namespace, side: Side, version: str, number: int, setting: Setting) -> Run:
    """Play the trace against one side."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="penstock-routers-")))
        fleet = running.enter_context(workers(setting.workers, setting.worker_options, folder))
        process, url = running.enter_context(router(side, fleet, folder))
        watch = _Watch(process, fleet)
        records = _ask(url, args.trace, setting, folder / "run")
        use = watch.read(len(records))
    told = judge(records, Judging(speed=setting.speed, warm_up=setting.warm_up))
    return Run(
        side=side.name,
        version=version,
        round=number,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        answers=told,
        use=use,
    )


def _ask(url: str, trace: Path, setting: Setting, folder: Path) -> list[Record]:
    """Run the client. What became of each request.

    Raises:
        FleetError: it was stopped.
    """
    parser = argparse.ArgumentParser()
    load.add_arguments(parser)
    args = parser.parse_args(
        [url, *(str(trace) if option == trace.name else option for option in setting.load_options)]
    )
    api = Api(url=url, model=MODEL, extensions=not args.plain, quickack=args.quickack)
    result = measure(Plan(api, None, _LATE, _TIMEOUT, 1, "", args), args, folder)
    if result.stopped:
        raise FleetError(f"the client was stopped: {result.stopped}")
    return list(read_parts([folder / "records.jsonl"]))


class _Watch:
    """What processes use from now on."""

    def __init__(self, router: Process, fleet: Sequence[Worker]) -> None:
        self._router, self._fleet = router, fleet
        self._began = time.monotonic()
        self._meter = CpuMeter()
        self._router_cpu = router.used().cpu
        self._workers_cpu = self._workers()

    def read(self, requests: int) -> Use:
        """What they used meanwhile, for so many ``requests``."""
        use, seconds = self._meter.read(), time.monotonic() - self._began
        router, fleet = self._router.used(), self._fleet
        router_cpu = (router.cpu - self._router_cpu) / seconds
        workers_cpu = (self._workers() - self._workers_cpu) / seconds
        computed = [
            worker.metric("vllm:prompt_tokens_total") - worker.metric("vllm:prefix_cache_hits_total")
            for worker in fleet
        ]
        return Use(
            router_request=router_cpu * seconds / requests,
            router_memory=router.memory,
            router_cpu=router_cpu,
            workers_cpu=workers_cpu,
            # All that descends from this process and is neither.
            client_cpu=use.own * (os.cpu_count() or 1) - router_cpu - workers_cpu,
            machine=use.own + use.foreign,
            foreign=use.foreign,
            imbalance=imbalance(computed),
            lost=max(worker.metric("penstock_simulated_lost_seconds_total") for worker in fleet) / seconds,
        )

    def _workers(self) -> float:
        return sum(worker.process.used().cpu for worker in self._fleet)


def _write(path: Path, results: Results) -> None:
    publish(path, results, markdown(results))


def _line(run: Run) -> str:
    told, use = run.answers, run.use
    return (
        f"{told.rate:.2f} requests/s of {told.offered_rate:.2f}, TTFT mean {told.ttft_mean * 1e3:,.0f} p50 "
        f"{told.ttft_p50 * 1e3:,.0f} p99 {told.ttft_p99 * 1e3:,.0f} ms, goodput {told.goodput:.1%}, hits "
        f"{told.hit_rate:.1%}, imbalance {use.imbalance:.2f}, {sum(told.errors.values())} errors; CPU: machine "
        f"{use.machine:.0%} (foreign {use.foreign:.0%}), router {use.router_cpu:.2f} cores, "
        f"{use.router_request * 1e3:.1f} ms/request, workers {use.workers_cpu:.2f}, client {use.client_cpu:.2f}; "
        f"lost {use.lost:.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
