"""How fast is this worker, as a formula? Fits `machines.Machine` to a log of measured steps.

A log is JSON lines, one a step: what it did (the four numbers of `scheduler.steptime.Work`) and how long it took. The
fit is the best one with no negative coefficient (Lawson and Hanson, Solving Least Squares Problems, chapter 23).
Errors count relative to what is predicted, so that short steps are fitted as well as long ones.

Tokens have a slope of their own between any two of the `BENDS`, for on a CPU they aren't linear: the demo model on two
cores takes 1.0 ms for a step of 1 token, 1.7 ms for 12, 4.6 ms for 80 and 12 ms for 380, where a token costs up to
50 us, and 29 us a token at 7,000. One slope is 20 % off over a whole run.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bench.simulate.machines import Machine
from scheduler.steptime import Work

BENDS: Final = (4, 16, 64, 128, 256, 512, 1024, 2048)
"""Where the time that a token takes may change, in tokens a step; those beyond the longest step have no part."""
_ROUNDS: Final = 3
_HELD_OUT: Final = 5  # one step in so many judges the fit and has no part in it
_FEWEST: Final = 50


class Step(msgspec.Struct, frozen=True):
    """A measured step; ``attended`` is `Work.pairs`, ``seconds`` how long it took."""

    tokens: int
    context: int
    attended: int
    requests: int
    seconds: float

    @property
    def work(self) -> Work:
        """What it did."""
        return Work(self.tokens, self.context, self.attended, self.requests)


class Fit(NamedTuple):
    """A machine, and how it does on steps held out: the median and the 90th percentile of its relative errors, and what
    it says of their whole time, over the truth."""

    machine: Machine
    median_error: float
    p90_error: float
    total: float
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps; held out: median error {self.median_error:.1%}, p90 {self.p90_error:.1%}, "
            f"whole time {self.total - 1:+.1%}"
        )


def read_log(path: Path) -> list[Step]:
    """The steps of a log.

    Raises:
        ValueError: a line is none; it says which.
    """
    decoder = msgspec.json.Decoder(Step)
    steps = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            steps.append(decoder.decode(line))
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}:{number}: no step: {error}") from error
    return steps


def write_log(path: Path, steps: Iterable[Step]) -> None:
    """Write steps as JSON lines."""
    path.write_bytes(b"".join(msgspec.json.encode(step) + b"\n" for step in steps))


def fit(steps: Sequence[Step], name: str, kv_tokens: int, *, ahead: bool = False) -> Fit:
    """The machine that took these steps.

    Raises:
        ValueError: there are too few steps to tell.
    """
    steps = [step for step in steps if step.seconds > 0 and step.requests]
    if len(steps) < _FEWEST:
        raise ValueError(f"{len(steps)} steps can't be fitted: at least {_FEWEST} are needed")
    judges = steps[::_HELD_OUT]
    learnt = [step for place, step in enumerate(steps) if place % _HELD_OUT]
    machine = _machine(learnt, name, kv_tokens, ahead)
    predicted = np.array([machine.seconds(step.work) for step in judges])
    truth = np.array([step.seconds for step in judges])
    errors = np.abs(predicted / truth - 1)
    return Fit(
        _machine(steps, name, kv_tokens, ahead),
        median_error=float(np.median(errors)),
        p90_error=float(np.quantile(errors, 0.9)),
        total=float(predicted.sum() / truth.sum()),
        steps=len(steps),
    )


def _machine(steps: Sequence[Step], name: str, kv_tokens: int, ahead: bool) -> Machine:
    seconds = np.array([step.seconds for step in steps])
    tokens = np.array([step.tokens for step in steps], float)
    bends = [bend for bend in BENDS if bend < tokens.max()]
    # How much of each stretch between two bends a step has.
    stretches = [np.clip(tokens, low, high) - low for low, high in pairwise((0, *bends, np.inf))]
    others = np.array([(1, step.context, step.attended, step.requests) for step in steps], float)
    step, context, pair, request, token, *slopes = map(float, _solve(np.column_stack([others, *stretches]), seconds))
    machine = Machine(
        name=name,
        step=step,
        token=token,
        context=context,
        pair=pair,
        request=request,
        bends=tuple(zip(map(float, bends), slopes, strict=True)),
        kv_tokens=kv_tokens,
        ahead=ahead,
        source=f"fitted to {len(steps)} measured steps",
    )
    logs = np.log(seconds / [machine.seconds(step.work) for step in steps])
    # The usual spread: 1.4826 medians are a standard deviation, and a stall is no jitter.
    jitter = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    return msgspec.structs.replace(machine, jitter=jitter)


def _solve(columns: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-negative coefficients with the least mean squared relative error."""
    scale = np.maximum(columns.max(axis=0), 1e-12)
    scaled = columns / scale
    expected = seconds
    found = np.zeros(scaled.shape[1])
    for _ in range(_ROUNDS):
        found = nnls(scaled / expected[:, None], seconds / expected)[0]
        # By what is predicted, not by what was measured: that would favour steps that happened to be short.
        expected = np.maximum(scaled @ found, 0.2 * seconds.min())
    return np.asarray(found / scale)
