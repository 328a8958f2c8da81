"""When does background work run, and how much of it fits a step?

Somebody waits for the foreground and nobody for the background, so what counts is how little the one feels of the
other. A newcomer waits for the end of the step that runs when it arrives: steps of background work alone are short.
While anybody is in the foreground, background requests pause and keep their KV, until it is wanted. But a worker is
seldom quite idle, and a batch should end one day, so the foreground pays a small tithe: a fixed share of its steps'
time is saved up, and when that is as long as a short step, background work rides along in a step of the foreground.
There it costs only what its own tokens cost, for the weights are read anyway.
"""

from scheduler.config import SchedulerConfig
from scheduler.request import R, Request
from scheduler.steptime import StepTime, Work

_NOTHING = Work(0, 0, 0, 0)


class Tithe:
    """How long background work may make the next step."""

    __slots__ = ("_config", "_saved", "_steptime")

    def __init__(self, config: SchedulerConfig, steptime: StepTime) -> None:
        """Nothing has been saved up."""
        self._config = config
        self._steptime = steptime
        self._saved = 0.0

    def allow(self, foreground: Work) -> float:
        """Seconds by which background work may lengthen a step with this ``foreground`` work; 0 is not at all.

        To be asked once a step while there is background work.
        """
        # Where a step takes long whatever it does, one that did less than that again would be a waste.
        fixed = self._steptime.predict(_NOTHING)
        short = max(self._config.background_step - fixed, fixed)
        if not foreground.requests:
            return short
        self._saved = min(self._saved + self._config.background_share * self._steptime.predict(foreground), short)
        return short if self._saved >= short else 0.0

    def spend(self, seconds: float) -> None:
        """Background work lengthened a step of the foreground by ``seconds``."""
        self._saved -= seconds


class Allowance:
    """What one step has for background work: a time, and the room that the foreground's work leaves."""

    __slots__ = ("_left", "_places", "_steptime", "_tokens", "seconds")

    def __init__(self, config: SchedulerConfig, steptime: StepTime, foreground: Work, seconds: float) -> None:
        """Background work may lengthen a step with this ``foreground`` work by ``seconds``."""
        self._steptime = steptime
        self._tokens = config.max_batch_tokens - foreground.tokens
        self._places = config.max_running - foreground.requests
        self._left = seconds
        # By how much it lengthens the step so far.
        self.seconds = 0.0

    def take_turns(self, decoding: dict[int, R]) -> list[R]:
        """As many decodes as fit, the first of ``decoding``; at least one if there is a place. They become the last."""
        chosen: list[R] = []
        for request in decoding.values():
            took = self._steptime.slice_seconds(request.computed, 1)
            if not self._fits(1) or (chosen and took > self._left):
                break
            chosen.append(request)
            self._use(1, took)
        if len(chosen) < len(decoding):
            for request in chosen:
                decoding[request.uid] = decoding.pop(request.uid)
        return chosen

    def grant(self, request: Request, *, ahead: bool = False) -> int:
        """How many of its tokens ``request`` may prefill in this step, at least one if nothing else is done."""
        if not self._fits(1):
            return 0
        start = request.computed
        afford = self._steptime.tokens_within(self._left, start)
        if not self.seconds:
            afford = max(afford, 1)
        count = min(len(request.tokens) - start, self._tokens, afford)
        if count:
            self._use(count, self._steptime.slice_seconds(start, count))
        return count

    def _fits(self, tokens: int) -> bool:
        return self._places > 0 and self._tokens >= tokens

    def _use(self, tokens: int, seconds: float) -> None:
        self._places -= 1
        self._tokens -= tokens
        self._left -= seconds
        self.seconds += seconds
