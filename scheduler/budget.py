"""How much prefill may this step take on?

Decodes run in every step; what is left of the step's budget goes to slices of prefill. With a time budget the step may
last as long as the tightest decode deadline allows (FairBatching), so a slice's size follows from what its tokens will
cost. Without one the step has a fixed size in tokens (Sarathi-Serve).
"""

from typing import Final

from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.steptime import StepTime, Work

_RESERVE: Final = 0.25  # of the time between two tokens: 0.5 helps others half as much, 0.15 costs throughput
_LEAST: Final = 1.25  # of what the decodes alone take


class Budget:
    """What one step has left for prefill."""

    __slots__ = ("_deadlines", "_floor", "_left", "_now", "_reserve", "_steptime", "_tokens", "seconds")

    def __init__(self, config: SchedulerConfig, steptime: StepTime, decodes: Work, tightest: float, now: float) -> None:
        """Reckon what the ``decodes`` leave; ``tightest`` is when the first of their tokens is due."""
        self._steptime = steptime
        self._now = now
        self._deadlines = config.deadlines
        self._floor = config.min_prefill_tokens
        self._tokens = config.max_batch_tokens - decodes.tokens
        # Seconds that the step takes so far, and that it may still be lengthened by.
        self.seconds = steptime.predict(decodes)
        self._left: float | None = None
        # How long the step may get for those that had more than their share: what decodes gain on their deadlines
        # meanwhile is there for others' prompts when they come.
        self._reserve = max(_RESERVE * config.tpot, _LEAST * self.seconds) if decodes.requests else None
        if not config.time_budget:
            self._tokens = min(self._tokens, max(config.token_budget - decodes.tokens, self._floor))
        elif not decodes.requests:
            self._left = config.max_step - self.seconds
        elif config.deadlines:
            slack = (tightest - now) * (1 - config.margin)
            self._left = min(slack, config.max_step) - self.seconds
        else:
            self._left = config.tpot - self.seconds

    def grant(self, request: Request, *, ahead: bool = False) -> int:
        """How many of its tokens ``request`` may compute in this step; the budget is charged with them.

        ``ahead``: its tenant has had more than its share, and gets only what leaves room for others to come.
        """
        start = request.computed
        want = len(request.tokens) - start
        count = min(want, self._tokens)
        left = self._left
        if left is not None:
            if ahead and self._reserve is not None:
                left = min(left, self._reserve - self.seconds)
            afford = self._steptime.tokens_within(left, start)
            if afford < count:
                count = max(afford, min(count, 1 if ahead else self._floor))
        if count <= 0:
            return 0
        took = self._steptime.slice_seconds(start, count)
        self.seconds += took
        self._tokens -= count
        self._floor = max(self._floor - count, 0)
        left = self._left
        if left is not None:
            left -= took
            if count == want and self._deadlines:
                # Its first token comes with this step: what follows must not make it late, if it still can be in time.
                slack = request.due - self._now - self.seconds
                if 0 < slack < left:
                    left = slack
            self._left = left
        return count
