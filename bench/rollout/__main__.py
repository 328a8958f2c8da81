"""``python -m bench.rollout``: false rollbacks, time to find out, wrong promotions; ours, and others' judges beside it.

Each run is a rollout of its own, over days of simulated traffic. *Judged*: the canary keeps its weight of 10 %, and
one guard watches it without a margin, at 5 %, looking after every request: how many canary requests until it is found
out? *Whole rollouts*: all steps, three guards that share the 5 %, promotion at 1 %: what becomes of it?
"""

import argparse
import datetime
import heapq
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from bench.machine import Machine, describe
from bench.publish import publish
from bench.rollout.judges import Judge, Peeking, Sequences, Windows
from bench.rollout.traffic import Request, Traffic, Truth
from gateway.traffic.rollout.blocks import Outcome
from gateway.traffic.rollout.rollout import Rollout, RolloutConfig

ALPHA = 0.05
RATE = 0.5  # requests/s: a day and night have 43,000
JUDGED = [
    (Truth(name="as good"), "ttft"),
    (Truth(name="as good, control lags 60 s", lag=60.0), "ttft"),
    (Truth(name="TTFT +20 %", ttft=1.2), "ttft"),
    (Truth(name="TTFT +20 %, wider spread", ttft=1.2, spread=0.7), "ttft"),
    (Truth(name="TTFT +10 %", ttft=1.1), "ttft"),
    (Truth(name="as good"), "bad_outcome_rate"),
    (Truth(name="bad outcomes 2 -> 4 %", canary_bad=0.04), "bad_outcome_rate"),
]
ROLLOUTS = [
    Truth(name="as good"),
    Truth(name="TTFT +20 %", ttft=1.2),
    Truth(name="bad outcomes 2 -> 4 %", canary_bad=0.04),
    Truth(name="TTFT -20 %", ttft=0.8),
]
GUARDS = ("error_rate", "bad_outcome_rate", "ttft")


class Judged(msgspec.Struct, frozen=True):
    """How one judge did on one truth. ``median``: canary requests until found worse, over all runs; None: never."""

    truth: str
    measure: str
    judge: str
    found: float
    median: float | None


class Ended(msgspec.Struct, frozen=True):
    """What became of whole rollouts, as shares of all; ``median``: canary requests until the end."""

    truth: str
    rolled_back: float
    promoted: float
    still_running: float
    median: float


class Result(msgspec.Struct, frozen=True):
    """All of it."""

    date: str
    machine: Machine
    runs: int
    requests: int
    judged: list[Judged]
    rollouts: list[Ended]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="runs of each case (default 300)")
    parser.add_argument("--requests", type=int, default=40_000, help="requests in a run, of both arms (default 40000)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/rollout.json"), help="where the result goes")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.jobs) as pool:
        judged = [row for truth, measure in JUDGED for row in judge(pool, truth, measure, args.runs, args.requests)]
        rollouts = [roll_out(pool, truth, args.runs, 3 * args.requests) for truth in ROLLOUTS]
    today = datetime.datetime.now().date().isoformat()
    result = Result(today, describe(), args.runs, args.requests, judged, rollouts)
    publish(args.out, result, page(result))
    print(page(result))


def judge(pool: ProcessPoolExecutor, truth: Truth, measure: str, runs: int, requests: int) -> Iterator[Judged]:
    """All judges on one truth."""
    for name in judges(measure):
        found = list(pool.map(partial(_found, truth, measure, name, requests), range(runs)))
        done = sorted(one for one in found if one is not None)
        middle = done[runs // 2] if len(done) > runs // 2 else None
        print(f"{truth.name}: {name}: {len(done)} of {runs}, median {middle}", flush=True)
        yield Judged(truth.name, measure, name, len(done) / runs, middle)


def judges(measure: str) -> dict[str, Callable[[], Judge] | None]:
    """Who judges; None: our guard."""
    if measure != "ttft":
        return {"Penstock": None, "confidence sequences": partial(Sequences, ALPHA)}
    return {
        "Penstock": None,
        "peeking": partial(Peeking, ALPHA),
        "windows, Kayenta's way": partial(Windows, 0.02),
        "confidence sequences": partial(Sequences, ALPHA),
    }


def known_in_order(traffic: Traffic, count: int) -> Iterator[tuple[Request, bool]]:
    """``count`` requests: each twice, when it comes (False) and when its outcome is known (True), in time's order."""
    waiting: list[tuple[float, int, Request]] = []
    for request, _ in zip(traffic, range(count), strict=False):
        while waiting and waiting[0][0] <= request.came:
            yield heapq.heappop(waiting)[2], True
        yield request, False
        heapq.heappush(waiting, (request.known, request.uid, request))


def _outcome(request: Request) -> Outcome:
    return Outcome({"ttft": request.ttft}, frozenset({"bad_outcome"}) if request.bad else frozenset())


def _found(truth: Truth, measure: str, name: str, requests: int, seed: int) -> int | None:
    """After how many canary requests the judge called ``name`` says that the canary is worse."""
    make = judges(measure)[name]
    traffic = Traffic(truth, RATE, seed)
    canaries = 0
    if make is not None:
        judge = make()
        for request, known in known_in_order(traffic, requests):
            canaries += request.canary and not known
            if known and judge.add(request.canary, request.ttft if measure == "ttft" else float(request.bad)):
                return canaries
        return None
    config = RolloutConfig(guard=(measure,), max_regression=0.0, alpha=ALPHA, steps=(10,), dwell=1e12)
    rollout = Rollout(config, traffic.now)
    for request, known in known_in_order(traffic, requests):
        if not known:
            canaries += request.canary
            rollout.came(request.uid, request.canary, "", request.came)
        else:
            rollout.ended(request.uid, _outcome(request))
            if request.canary and rollout.look(request.known):
                return canaries
    return None


def roll_out(pool: ProcessPoolExecutor, truth: Truth, runs: int, requests: int) -> Ended:
    """Whole rollouts of one truth."""
    ends = list(pool.map(partial(_rolled_out, truth, requests), range(runs)))
    back, up, on = (sum(status == one for status, _ in ends) / runs for one in ("rolled_back", "promoted", "running"))
    print(f"{truth.name}: rolled back {back:.1%}, promoted {up:.1%}, running {on:.1%}", flush=True)
    return Ended(truth.name, back, up, on, statistics.median(canaries for _, canaries in ends))


def _rolled_out(truth: Truth, requests: int, seed: int) -> tuple[str, int]:
    traffic = Traffic(truth, RATE, seed)
    rollout = Rollout(RolloutConfig(guard=GUARDS, max_regression=0.0, alpha=ALPHA, dwell=600.0), traffic.now)
    canaries = 0
    for request, known in known_in_order(traffic, requests):
        if not known:
            traffic.weight = rollout.weight / 100
            canaries += request.canary
            rollout.came(request.uid, request.canary, "", request.came)
            continue
        rollout.ended(request.uid, _outcome(request))
        if rollout.look(request.known) and rollout.status != "running":
            break
    return rollout.status, canaries


def page(result: Result) -> str:
    """The result as Markdown."""
    lines = [
        "# Canaries with a known truth",
        "",
        f"{result.runs} runs of {result.requests:,} requests each, a tenth of them the canary's, "
        f"load and TTFT swinging by 30 % over a day of {RATE * 86_400:,.0f} requests. TTFT is log-normal with a "
        "spread of 0.5 (wider: 0.7). Made by `python -m bench.rollout` "
        f"({result.date}, {result.machine.cpu}).",
        "",
        "One guard without a margin, at 5 %, looked at after every canary request. Of a canary that is as good, "
        "what is found is wrong.",
        "",
        "| truth | measure | judge | found worse | canary requests, median |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result.judged:
        median = "" if row.median is None else f"{row.median:,.0f}"
        lines.append(f"| {row.truth} | {row.measure} | {row.judge} | {row.found:.1%} | {median} |")
    lines += [
        "",
        f"Whole rollouts over 5, 25, 50 and 100 %: guards {', '.join(GUARDS)} share an alpha of 5 %, each promotes at "
        f"1 %; {3 * result.requests:,} requests at most.",
        "",
        "| truth | rolled back | promoted | still running | canary requests, median |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.truth} | {row.rolled_back:.1%} | {row.promoted:.1%} | {row.still_running:.1%} | {row.median:,.0f} |"
        for row in result.rollouts
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
