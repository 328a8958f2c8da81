"""Where does each request stand: waiting, prefilling or decoding?

There are two lanes: the foreground, which somebody waits for, and background work. They share the pool and the step,
and nothing else, so that what is decided for the foreground never depends on what else there is to do.
"""

from collections.abc import Iterator
from itertools import chain
from operator import attrgetter
from typing import Generic

from scheduler.admission import OutputLengths
from scheduler.blocks import BlockPool, IntegrityError
from scheduler.config import SchedulerConfig
from scheduler.fairness import Line
from scheduler.request import DECODE, PREFILL, R
from scheduler.steptime import Work

_computed = attrgetter("computed")


class Lane(Generic[R]):
    """The requests of one lane, by what they do, and what was learnt from those that ended."""

    __slots__ = (
        "background",
        "closing",
        "decoding",
        "lengths",
        "line",
        "needy",
        "owed_pairs",
        "owed_tokens",
        "preempted",
        "prefilling",
        "shut",
        "shut_ahead",
        "shut_priority",
    )

    def __init__(self, config: SchedulerConfig, pool: BlockPool, *, background: bool = False) -> None:
        """Nobody is here yet."""
        self.background = background
        self.line: Line[R] = Line(config, pool)
        self.lengths = OutputLengths()
        self.prefilling: dict[int, R] = {}
        # In the order in which they are to run, where not all can.
        self.decoding: dict[int, R] = {}
        # Their last token is under way.
        self.closing: dict[int, R] = {}
        # Decodes whose blocks are full, since this lane last ran.
        self.needy: list[R] = []
        # Who lost its KV in the step that is being planned.
        self.preempted: list[R] = []
        # No request was admitted when last tried, and none has let go of anything since; the priority tried, and
        # whether its tenant had had more than its share: others may have more room.
        self.shut = False
        self.shut_priority = 0
        self.shut_ahead = False
        # Prefill that everybody together still has to compute: tokens, and (query, key) pairs.
        self.owed_tokens = 0
        self.owed_pairs = 0

    @property
    def busy(self) -> bool:
        """Whether anybody is here."""
        return bool(self.decoding or self.prefilling or self.line.waiting)

    @property
    def running(self) -> int:
        """How many requests hold KV."""
        return len(self.prefilling) + len(self.decoding) + len(self.closing)

    def runners(self) -> Iterator[R]:
        """The requests that hold KV."""
        return chain(self.prefilling.values(), self.decoding.values(), self.closing.values())

    def of_state(self, state: int) -> dict[int, R]:
        """Where those that hold KV are kept, by what they do."""
        return self.prefilling if state == PREFILL else self.decoding if state == DECODE else self.closing

    def decode_work(self) -> Work:
        """What it takes to give each decode its next token."""
        count = len(self.decoding)
        context = sum(map(_computed, self.decoding.values())) + count
        return Work(count, context, context, count)

    def victim(self, below: int | None = None) -> R | None:
        """Of the least urgent requests that run (less so than ``below``), the one admitted last."""
        victim = min(self.runners(), key=lambda request: (request.priority, -request.admitted), default=None)
        return None if victim is None or (below is not None and victim.priority >= below) else victim

    def owe(self, request: R, tokens: int) -> None:
        """Set how much prefill the backlog counts for a request: its last ``tokens``."""
        length = len(request.tokens)
        old = request.owed
        self.owed_tokens += tokens - old
        self.owed_pairs += pairs(length - tokens, tokens) - pairs(length - old, old)
        request.owed = tokens

    def check_integrity(self, max_running: int) -> None:
        """Look for contradictions among the requests that run.

        Raises:
            IntegrityError: saying what is wrong.
        """
        if self.running > max_running:
            raise IntegrityError(f"{self.running} run, at most {max_running} may")
        for request in self.decoding.values():
            if request.computed != len(request.tokens) - 1:
                raise IntegrityError(f"{request} decodes, and lacks more than one token")


def pairs(start: int, count: int) -> int:
    """How many tokens the ``count`` tokens after ``start`` attend to, all together."""
    return count * start + count * (count + 1) // 2
