"""How long does a call take on a GPU, with inputs that come from memory and without the launches' own time?

Calls go through several sets of inputs, so that no set is left in the L2 cache when its turn comes again. Short ones
are captured into one CUDA graph, many in a row, as the engine runs them too: one after the other from Python, the GPU
would wait for each launch. Outputs of one round through the sets are kept, so that they too go to memory.
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median, quantiles
from typing import Any, Final, NamedTuple

import torch

Call = Callable[[], object]

# Measurements of a round; two rounds say how far the same differs from itself.
_MEASUREMENTS: Final = 20
_ROUNDS: Final = 2
# Seconds. A call of this length hides the launch of the next; a graph should take this long at least, so that its
# start and the clock of the events (0.5 µs) don't matter.
_LONG: Final = 1e-3
_GRAPH: Final = 2e-3
_MOST_CALLS: Final = 2000
# More sets than this are not made: what is that small is in the cache in an engine too.
_MOST_SETS: Final = 512
_LARGE: Final = 2**30


class Timing(NamedTuple):
    """Seconds of a call: the median of each round, and the quartiles' distance as a share of the median."""

    medians: tuple[float, ...]
    jitter: float

    @property
    def seconds(self) -> float:
        return median(self.medians)


def sets_needed(size: int, cache: int) -> int:
    """How many sets of inputs are four times the ``cache`` when each takes ``size`` bytes; two at least, if possible.

    Of those that take a gigabyte one is enough: what the cache has kept of it doesn't count.
    """
    least = 1 if size >= _LARGE else 2
    return min(_MOST_SETS, max(least, math.ceil(4 * cache / max(1, size))))


def timed(
    calls: Sequence[Call], device: torch.device, *, measurements: int = _MEASUREMENTS, rounds: int = _ROUNDS
) -> Timing:
    """Time the calls, which do the same with different inputs, in turn; the first time around is not counted."""
    for call in calls:
        call()
    if device.type != "cuda":
        samples = [_by_clock(calls, measurements) for _ in range(rounds)]
    else:
        samples = _on_gpu(calls, measurements, rounds)
    every = sorted(sample for part in samples for sample in part)
    low, middle, high = quantiles(every, n=4, method="inclusive")
    return Timing(tuple(median(part) for part in samples), (high - low) / middle if middle else 0.0)


def _by_clock(calls: Sequence[Call], measurements: int) -> list[float]:
    samples = []
    for index in range(measurements):
        begin = time.perf_counter()
        calls[index % len(calls)]()
        samples.append(time.perf_counter() - begin)
    return samples


def _on_gpu(calls: Sequence[Call], measurements: int, rounds: int) -> list[list[float]]:
    if median(_eager(calls, 5)) >= _LONG:
        return [_eager(calls, measurements) for _ in range(rounds)]
    count = len(calls)
    graph = _captured(calls, count)
    seconds = _replays(graph, 3)[-1]
    wanted = count * min(math.ceil(_GRAPH / max(seconds, 1e-7)), _MOST_CALLS // count)
    if wanted > count:
        count = wanted
        graph.reset()
        graph = _captured(calls, count)
        _replays(graph, 2)
    samples = [[one / count for one in _replays(graph, measurements)] for _ in range(rounds)]
    graph.reset()
    return samples


def _captured(calls: Sequence[Call], count: int) -> torch.cuda.CUDAGraph:
    """A graph of ``count`` calls in turn."""
    graph = torch.cuda.CUDAGraph()
    kept: list[Any] = [None] * len(calls)
    with torch.cuda.graph(graph):
        for index in range(count):
            place = index % len(calls)
            kept[place] = calls[place]()
    return graph


def _replays(graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
    return _between(count, lambda index: graph.replay())


def _eager(calls: Sequence[Call], count: int) -> list[float]:
    return _between(count, lambda index: calls[index % len(calls)]())


def _between(count: int, work: Callable[[int], object]) -> list[float]:
    """Seconds of each piece of work, on the GPU's own clock; they follow one another without a wait."""
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for index in range(count):
        work(index)
        marks[index + 1].record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(marks)]
