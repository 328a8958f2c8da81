"""How many tokens has a prompt, and how many its answer? Distributions, and how they are written on a command line.

The same distributions say how long people think and how many turns they take.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NoReturn

from bench.load.arrivals import WorkloadError

FORMS: Final = (
    "N, uniform:FROM,TO, normal:MEAN,SD, lognormal:MEAN,SIGMA, exponential:MEAN or trace:FILE; with ,min=N ,max=N to "
    "clip it"
)
"""The grammar of `parse_distribution`."""

_PARAMETERS: Final = {"fixed": 1, "uniform": 2, "normal": 2, "lognormal": 2, "exponential": 1}

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Distribution:
    """Numbers at random. ``parameters`` are, by ``kind``:

    - ``fixed``: the number;
    - ``uniform``: the lowest and the highest, both of which come, whole numbers between whole ones;
    - ``normal``: mean and standard deviation;
    - ``lognormal``: mean (of the numbers themselves) and sigma (standard deviation of their logarithm);
    - ``exponential``: mean;
    - ``trace``: none; one of ``values`` is drawn evenly.

    What is drawn is clipped to ``low`` … ``high``, which moves the mean.
    """

    kind: str
    parameters: tuple[float, ...]
    low: float = 0.0
    high: float = math.inf
    values: tuple[int, ...] = field(default=(), repr=False)
    title: str = ""

    def sampler(self, seed: int, name: str) -> Callable[[], float]:
        """Draws from it; another ``name`` makes another series of the same ``seed``."""
        draw, low, high = self._draw(random.Random(f"{seed}:{name}")), self.low, self.high
        return lambda: min(max(draw(), low), high)

    def counts(self, seed: int, name: str) -> Callable[[], int]:
        """`sampler`, rounded to whole numbers of 1 or more."""
        draw = self.sampler(seed, name)
        return lambda: max(1, round(draw()))

    def _draw(self, rng: random.Random) -> Callable[[], float]:
        match self.kind, self.parameters:
            case "fixed", (value,):
                return lambda: value
            case "uniform", (low, high) if low.is_integer() and high.is_integer():
                return lambda: rng.randint(int(low), int(high))
            case "uniform", (low, high):
                return lambda: rng.uniform(low, high)
            case "normal", (mean, deviation):
                return lambda: rng.normalvariate(mean, deviation)
            case "lognormal", (mean, sigma):
                # E[exp(N(mu, sigma))] = exp(mu + sigma^2 / 2)
                mu = math.log(mean) - sigma**2 / 2
                return lambda: rng.lognormvariate(mu, sigma)
            case "exponential", (mean,):
                return lambda: rng.expovariate(1 / mean)
        values = self.values
        return lambda: rng.choice(values)


def fixed(value: float) -> Distribution:
    """Always the same."""
    return Distribution("fixed", (float(value),), title=f"{value:g}")


def parse_distribution(text: str, side: Side = "input") -> Distribution:
    """What `FORMS` says, such as ``512``, ``uniform:100,1024``, ``lognormal:220,1.0,max=2048`` or ``trace:FILE``.

    ``side`` tells which of a trace's two lengths is meant; the file is read whole.

    Raises:
        WorkloadError: the text is none of these, or the trace can't be read.
    """
    kind, colon, rest = text.strip().partition(":")
    if not colon:
        kind, rest = "fixed", kind
    fields = [part.strip() for part in rest.split(",")]
    bounds = {"min": 0.0, "max": math.inf}
    while len(fields) > 1 and (match := re.fullmatch(r"(min|max)\s*=\s*(.*)", fields[-1])):
        bounds[match[1]] = _number(text, match[2])
        fields.pop()
    if bounds["min"] > bounds["max"]:
        _refuse(text, "min is above max")
    if kind == "trace" and len(fields) == 1 and fields[0]:
        values = _column(Path(fields[0]), side)
        return Distribution("trace", (), bounds["min"], bounds["max"], values, title=text)
    if len(fields) != _PARAMETERS.get(kind):
        _refuse(text, f"write {FORMS}")
    parameters = tuple(_number(text, part) for part in fields)
    if kind == "uniform" and parameters[0] > parameters[1]:
        _refuse(text, f"the first number is the lowest: write uniform:{fields[1]},{fields[0]}")
    if kind in ("lognormal", "exponential") and not parameters[0]:
        _refuse(text, "a mean is above 0")
    return Distribution(kind, parameters, bounds["min"], bounds["max"], title=text)


def _column(path: Path, side: Side) -> tuple[int, ...]:
    from bench.load.traces import read_trace

    rows = read_trace(path)
    return tuple(row.input_tokens if side == "input" else row.output_tokens for row in rows)


def _number(text: str, part: str) -> float:
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        _refuse(text, f"{part!r} is no number of 0 or more" if part else f"a number is missing: write {FORMS}")
    return value


def _refuse(text: str, reason: str) -> NoReturn:
    raise WorkloadError(f"{text!r}: {reason}")
