"""How much does an endpoint hold? The knee: the highest rate at which goodput is still what was asked for.

The rate doubles until goodput falls below the share, then the bounds are halved until they are close. A level whose
queue grows without bound is ended early: no more waiting would make it hold.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bench.load import workload
from bench.load.arrivals import WorkloadError, parse_arrivals, parse_time
from bench.load.driver import Progress
from bench.load.measure import INTERRUPTED, Plan, measure

SWEEP: Final = "sweep.json"
SECONDS: Final = "30s"
"""How long a level asks, unless told otherwise."""
_PRECISION: Final = 0.05
_DRAIN: Final = 10.0
_PATIENCE: Final = 5.0
_HALVINGS: Final = 10
_LEVELS: Final = 30
_SAMPLES_LEAST: Final = 12
_WINDOW_LEAST: Final = 4.0
_SIGMAS: Final = 3.0
_CONCAVE: Final = 0.5


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One rate, and whether it held. ``goodput`` counts requests that were dropped with the level as not good.

    ``stopped`` says why it was ended early; ``invalid``, why its figures must not be used.
    """

    rate: float
    goodput: float
    held: bool
    invalid: str = ""
    stopped: str = ""
    folder: str = ""


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep found; ``highest`` is None where no rate held, ``lowest_failing`` where every one did."""

    slo: str
    share: float
    precision: float
    highest: float | None
    lowest_failing: float | None
    levels: list[Level]


def find_knee(
    ask: Callable[[float], Level | None], first: float, precision: float = _PRECISION, levels: int = _LEVELS
) -> tuple[list[Level], float | None, float | None]:
    """Ask at rates until the knee is known to ``precision``, ``levels`` times at most, or ``ask`` has no answer.

    Precision is how far the lowest rate that doesn't hold is above the highest that does, as a share of it.
    It returns the levels, the highest rate that held, and the lowest above it that didn't.
    """
    asked: list[Level] = []
    low, high, rate = 0.0, math.inf, first
    while len(asked) < levels:
        level = ask(rate)
        if level is None:
            break
        asked.append(level)
        if level.held:
            low = rate
        else:
            high = rate
        if low and math.isinf(high):
            rate = low * 2
        elif not low:
            if rate <= first / 2**_HALVINGS:
                break
            rate = high / 2
        elif high - low > precision * low:
            rate = (low + high) / 2
        else:
            break
    return asked, low or None, None if math.isinf(high) else high


class Sample(NamedTuple):
    """How many requests had begun, and how many waited for a first token, so many seconds after the beginning."""

    elapsed: float
    offered: int
    waiting: int


class Growth:
    """Watches for a queue that grows without bound; ``patience`` is how long a request may wait, in seconds.

    Requests without a first token are the queue: the others in flight are no sign, since their number grows until the
    first long answers end, however well a server does.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._samples: list[Sample] = []

    def note(self, progress: Progress) -> bool:
        """Take one more look; whether the queue grows without bound."""
        if self._samples or progress.in_flight > progress.waiting or progress.finished:
            self._samples.append(Sample(progress.elapsed, progress.offered, progress.waiting))
        return grows(self._samples, self._patience)


def grows(samples: Sequence[Sample], patience: float) -> bool:
    """Whether a queue is on its way to infinity.

    It is when its mean length rises from third to third of the time by more than chance (counts of a stable queue vary
    by about their root; three times that is asked for), not much slower in the end, and when it is so long in the last
    third that a request waits longer than ``patience`` in the mean (by Little's law, length over rate). Less than four
    seconds, or four times the patience, say nothing.
    """
    if len(samples) < _SAMPLES_LEAST or samples[-1].elapsed - samples[0].elapsed < max(_WINDOW_LEAST, 4 * patience):
        return False
    third = len(samples) // 3
    first, middle, last = (
        sum(one.waiting for one in samples[begin : begin + third]) / third for begin in range(0, 3 * third, third)
    )
    rate = (samples[-1].offered - samples[0].offered) / (samples[-1].elapsed - samples[0].elapsed)
    return (
        middle - first > _SIGMAS * math.sqrt(first + 1)
        and last - middle > _SIGMAS * math.sqrt(middle + 1)
        and last - middle >= _CONCAVE * (middle - first)
        and last > patience * rate
    )


def run_sweep(plan: Plan, args: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> tuple[Sweep, bool]:
    """Sweep as the options say, each level in a folder of its own within ``folder``, and write `SWEEP` there.

    ``say`` gets a line for each level. It returns what was found, and whether ctrl-C ended it.

    Raises:
        WorkloadError: the arrivals have no rate that could be changed.
    """
    assert plan.slo is not None
    arrivals = args.arrivals or workload.ARRIVALS
    kind, _, rest = arrivals.partition(":")
    if kind.strip() not in ("constant", "poisson", "gamma"):
        raise WorkloadError(f"--sweep changes a rate: say --arrivals constant, poisson or gamma, not {arrivals}")
    parse_arrivals(arrivals)
    first, comma, shape = rest.partition(",")
    interrupted = False

    def ask(rate: float) -> Level | None:
        nonlocal interrupted
        changed = {"arrivals": f"{kind}:{rate:g}{comma}{shape}", "duration": args.duration or SECONDS}
        level = _level(plan, argparse.Namespace(**{**vars(args), **changed}), rate, folder)
        interrupted = level is None
        if level is not None:
            held = "holds" if level.held else "does not hold"
            say(f"{rate:g}/s: goodput {level.goodput:.1%}, {held}{level.stopped and f': {level.stopped}'}")
        return level

    levels, low, high = find_knee(ask, float(first), args.sweep_precision)
    found = Sweep(
        slo=str(plan.slo),
        share=args.sweep_share,
        precision=args.sweep_precision,
        highest=low,
        lowest_failing=high,
        levels=levels,
    )
    (folder / SWEEP).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return found, interrupted


def _level(plan: Plan, args: argparse.Namespace, rate: float, folder: Path) -> Level | None:
    """One level; None if ctrl-C ended it."""
    assert plan.slo is not None
    growth, seconds = Growth(plan.slo.ttft or plan.slo.latency or _PATIENCE), parse_time(args.duration)

    def hopeless(progress: Progress) -> str:
        if progress.elapsed < seconds and growth.note(progress):
            return "the queue grew without bound"
        if progress.elapsed > 2 * seconds + _DRAIN:
            return f"requests were still running {seconds + _DRAIN:g} s after the last was sent"
        return ""

    within = folder / f"rate-{rate:g}"
    summary, stopped = measure(plan, args, within, hopeless)
    if stopped == INTERRUPTED:
        return None
    offered = summary.offered + summary.interrupted
    goodput = (summary.good or 0) / offered if offered else 0.0
    return Level(
        rate=rate,
        goodput=goodput,
        held=goodput >= args.sweep_share and not stopped,
        invalid=summary.invalid,
        stopped=stopped,
        folder=within.name,
    )


def knee(found: Sweep) -> str:
    """What a sweep found, in a sentence."""
    kept = f"{found.share:.0%} of requests within {found.slo}"
    if not found.levels:
        return "no level was measured"
    if found.highest is None:
        return f"no rate held {kept}: the lowest tried was {min(one.rate for one in found.levels):g}/s"
    if found.lowest_failing is None:
        return f"every rate held {kept}, up to {found.highest:g}/s"
    return f"the knee is at {found.highest:g}/s: {kept} hold there, and no more at {found.lowest_failing:g}/s"
