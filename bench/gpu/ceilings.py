"""What can this card do at most? A copy and a matrix product are measured, and all other figures stand beside them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from bench.gpu.report import Case, Figure
from bench.gpu.timing import Call, Timing, sets_needed, timed

COPY: Final = "device copy"
READ: Final = "device read (the largest of all)"
PRODUCT: Final = "matrix product, bf16"
# The L2 of an H100 or H200, in bytes, for a torch that doesn't say.
_CACHE: Final = 50 * 2**20


@dataclass(frozen=True)
class Card:
    """Where is measured, and what was found out about it: ``figures`` has the ceilings once they are measured."""

    device: torch.device
    figures: Mapping[str, Figure]
    quick: bool = False

    @property
    def copy(self) -> float | None:
        """Bytes a second that a copy moves, those it reads and those it writes."""
        return self._ceiling(COPY, 1e9)

    def floor(self, size: float, operations: float = 0.0, *, rate: float = 1.0) -> float | None:
        """Seconds that moving ``size`` bytes and as many ``operations`` take at least; None as long as it's unknown.

        ``rate``: how many times as many operations as in bfloat16 the card does in a second.
        """
        copy, product = self.copy, self._ceiling(PRODUCT, 1e12)
        if copy is None or (operations and product is None):
            return None
        return max(size / copy, operations / (product * rate) if product else 0.0)

    def sets(self, size: int) -> int:
        """How many sets of inputs of ``size`` bytes are to be made."""
        if self.quick or self.device.type != "cuda":
            return 2
        found = torch.cuda.get_device_properties(self.device)
        return sets_needed(size, getattr(found, "L2_cache_size", _CACHE))

    def free(self) -> int:
        """Bytes of its memory that nobody has."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 2**28

    def time(self, make: Callable[[int], Call], size: int) -> Timing:
        """Time what ``make`` gives for each index of a set of inputs; a call moves ``size`` bytes."""
        return self.time_calls([make(index) for index in range(self.sets(size))])

    def time_calls(self, calls: list[Call]) -> Timing:
        return timed(calls, self.device, measurements=3) if self.quick else timed(calls, self.device)

    def _ceiling(self, name: str, unit: float) -> float | None:
        figure = self.figures.get(name)
        return None if figure is None else figure.value * unit


def cases(card: Card) -> Iterator[Case]:
    """Everything else needs these: they come first."""
    yield Case("ceilings", "ceilings", 10, lambda: _ceilings(card))


def rate(timing: Timing, amount: float) -> list[float]:
    """So much in each median, a second."""
    return [amount / seconds for seconds in timing.medians]


def _ceilings(card: Card) -> Iterable[Figure]:
    size = 2**20 if card.quick else 2**32  # bytes
    source = torch.randn(size // 2, dtype=torch.bfloat16, device=card.device)
    target = torch.empty_like(source)
    timing = card.time_calls([partial(target.copy_, source)])
    yield Figure(COPY, "GB/s", rate(timing, 2 * size / 1e9), jitter=timing.jitter)
    timing = card.time_calls([source.amax])
    yield Figure(READ, "GB/s", rate(timing, size / 1e9), jitter=timing.jitter)
    side = 64 if card.quick else 8192
    pairs = [torch.randn(2, side, side, dtype=torch.bfloat16, device=card.device).unbind() for _ in range(2)]
    timing = card.time_calls([partial(torch.matmul, *pair) for pair in pairs])
    yield Figure(PRODUCT, "TFLOP/s", rate(timing, 2 * side**3 / 1e12), jitter=timing.jitter)
