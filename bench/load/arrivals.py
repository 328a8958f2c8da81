"""When is each request to be sent? Schedules of an open loop, as seeded iterators of seconds, and the closed loop.

Every schedule is a renewal process of rate 1 whose time is bent to the wanted rate: the n-th request comes when the
integral of the rate has grown to the n-th point of that process (Çinlar, Introduction to Stochastic Processes, 1975,
section 4.7). With exponential distances that is a Poisson process of the rate, whatever its shape.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Final, NoReturn

_FORMS: Final = {
    "constant": "constant:RATE",
    "poisson": "poisson:RATE",
    "gamma": "gamma:RATE,BURSTINESS",
    "ramp": "ramp:FROM,TO,TIME",
    "steps": "steps:RATExTIME,RATExTIME,…",
    "closed": "closed:CONCURRENCY",
}
FORMS: Final = " or ".join(", ".join(_FORMS.values()).rsplit(", ", 1))
"""The grammar of `parse_arrivals`."""

_UNITS: Final = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class WorkloadError(ValueError):
    """A workload that makes no sense; the message says what would."""


@dataclass(frozen=True)
class Stretch:
    """The rate goes evenly from ``start`` to ``end`` requests per second in ``seconds``, which may be infinite."""

    start: float
    end: float
    seconds: float = math.inf

    @property
    def requests(self) -> float:
        """How many requests come in this time, in the mean."""
        return (self.start + self.end) / 2 * self.seconds

    def when(self, requests: float) -> float:
        """Seconds until so many requests have come, in the mean: the inverse of the integrated rate."""
        if not requests:
            return 0.0
        if self.start == self.end:
            return requests / self.start
        slope = (self.end - self.start) / self.seconds
        # The usual formula's other half: it has no difference of nearly equal numbers where the slope is small.
        rate = self.start + math.sqrt(max(0.0, self.start**2 + 2 * slope * requests))
        seconds = 2 * requests / rate if rate else 0.0
        return min(seconds, self.seconds)


@dataclass(frozen=True)
class OpenLoop:
    """Requests come by a schedule, whatever the endpoint does.

    ``burstiness`` is the shape of the gamma-distributed distances, as vLLM's ``--burstiness``: 1 is Poisson, less comes
    in bursts, more is more even, infinity is a constant distance. Their coefficient of variation is
    1 / sqrt(burstiness).
    """

    title: str
    stretches: tuple[Stretch, ...]
    burstiness: float = 1.0

    @property
    def seconds(self) -> float:
        """How long it lasts; infinite if it never ends by itself."""
        return sum(stretch.seconds for stretch in self.stretches)

    def times(self, seed: int, count: int | None = None, duration: float | None = None) -> Iterator[float]:
        """Seconds from the beginning, ascending: at most ``count`` of them, all before ``duration``."""
        return bounded(self._bent(seed), count, duration)

    def faster(self, factor: float) -> "OpenLoop":
        """The same with ``factor`` times the rate, and the same length."""
        scaled = tuple(Stretch(one.start * factor, one.end * factor, one.seconds) for one in self.stretches)
        return replace(self, title=f"{self.title} x {factor:g}", stretches=scaled)

    def _bent(self, seed: int) -> Iterator[float]:
        points = self._points(random.Random(f"{seed}:arrivals"))
        point, begun, passed = next(points), 0.0, 0.0
        for stretch in self.stretches:
            while point < passed + stretch.requests:
                yield begun + stretch.when(point - passed)
                point = next(points)
            begun, passed = begun + stretch.seconds, passed + stretch.requests

    def _points(self, draw: random.Random) -> Iterator[float]:
        """A renewal process with one point a unit of time; the constant one has its first at once."""
        if self.burstiness == math.inf:
            number = 0
            while True:
                yield float(number)
                number += 1
        sum_ = 0.0
        while True:
            sum_ += draw.gammavariate(self.burstiness, 1 / self.burstiness)
            yield sum_


@dataclass(frozen=True)
class ClosedLoop:
    """So many requests at a time: each end starts the next. It has no schedule, and slows down with the endpoint."""

    concurrency: int

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return f"closed loop of {self.concurrency}"


Arrivals = OpenLoop | ClosedLoop


def bounded(times: Iterator[float], count: int | None = None, duration: float | None = None) -> Iterator[float]:
    """The first ``count`` of ascending ``times``, as far as they are before ``duration``."""
    if duration is not None:
        times = takewhile(lambda at: at < duration, times)
    return islice(times, count)


def parse_arrivals(text: str) -> Arrivals:
    """What `FORMS` says: ``poisson:5``, ``gamma:5,0.5``, ``ramp:1,20,60s``, ``steps:2x30s,8x30s``, ``closed:32``, ….

    Rates are requests per second; times seconds, or with a unit (ms, s, m, h). A ramp and steps end by themselves, and
    their requests come as a Poisson process does.

    Raises:
        WorkloadError: the text is none of these.
    """
    kind, _, rest = text.strip().partition(":")
    fields = [field.strip() for field in rest.split(",")] if rest else []
    kind = kind.strip()
    match kind, fields:
        case "constant", [rate]:
            return OpenLoop(f"constant {rate}/s", (_steady(text, rate),), math.inf)
        case "poisson", [rate]:
            return OpenLoop(f"Poisson {rate}/s", (_steady(text, rate),))
        case "gamma", [rate, shape]:
            burstiness = _number(text, "burstiness", shape)
            if burstiness <= 0:
                _refuse(text, "a burstiness is above 0 (1 is Poisson, less comes in bursts, more is more even)")
            return OpenLoop(f"gamma {rate}/s, burstiness {shape}", (_steady(text, rate),), burstiness)
        case "ramp", [start, end, time]:
            ramp = Stretch(_number(text, "rate", start), _number(text, "rate", end), _seconds(text, time))
            _check_rates(text, [ramp])
            return OpenLoop(f"ramp {start} to {end}/s in {ramp.seconds:g} s", (ramp,))
        case "steps", [_, *_]:
            steps = [_step(text, field) for field in fields]
            _check_rates(text, steps)
            return OpenLoop(f"steps {', '.join(fields)}", tuple(steps))
        case "closed", [concurrency]:
            if not re.fullmatch(r"0*[1-9]\d*", concurrency):
                _refuse(text, f"a closed loop has a whole number of requests at a time, 1 or more, not {concurrency!r}")
            return ClosedLoop(int(concurrency))
    _refuse(text, f"write {_FORMS.get(kind, FORMS)}")


def parse_time(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``500ms``, ``1.5m`` or ``1h``.

    Raises:
        WorkloadError: the text is no time above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise WorkloadError(f"{text!r} is no time above 0: write 90, 90s, 500ms, 1.5m or 1h")
    return float(match[1]) * _UNITS[match[2]]


def _steady(text: str, rate: str) -> Stretch:
    value = _number(text, "rate", rate)
    stretch = Stretch(value, value)
    _check_rates(text, [stretch])
    return stretch


def _step(text: str, field: str) -> Stretch:
    rate, times, time = field.partition("x")
    if not times:
        _refuse(text, f"a step is RATExTIME, such as 8x30s, not {field!r}")
    value = _number(text, "rate", rate)
    return Stretch(value, value, _seconds(text, time))


def _check_rates(text: str, stretches: list[Stretch]) -> None:
    rates = [rate for stretch in stretches for rate in (stretch.start, stretch.end)]
    if min(rates) < 0:
        _refuse(text, "a rate is requests per second, 0 or more")
    if not any(rates):
        _refuse(text, "at a rate of 0 nothing is ever sent")


def _number(text: str, what: str, field: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        _refuse(text, f"{what} {field!r} is no number")
    return value


def _seconds(text: str, field: str) -> float:
    try:
        return parse_time(field)
    except WorkloadError as error:
        _refuse(text, str(error))


def _refuse(text: str, reason: str) -> NoReturn:
    raise WorkloadError(f"arrivals {text!r}: {reason}")
