"""How busy is vLLM? What it tells of each step, and what we know of the requests that it was given.

vLLM reports when it takes a step, and falls silent with the last request: an abort that leaves nothing to do is never
reported. So what runs and waits is counted here, and vLLM's figures say only how those divide. The times of its steps
teach `scheduler.steptime` as the native engine's do: a worker's backlog in seconds, whichever engine it has.
"""

from dataclasses import dataclass, field
from typing import Any

from engine.link import Load
from scheduler.steptime import StepTime, Work


@dataclass(slots=True)
class Tally:
    """One request: its prompt's tokens, how many have been computed as far as we know, and what it has drawn."""

    prompt: int
    background: bool = False
    computed: int = 0
    drawn: int = 0


@dataclass(slots=True)
class Meter:
    """Counts requests and steps; ``kv_total`` is in tokens."""

    kv_total: int
    tpot: float
    steptime: StepTime = field(default_factory=StepTime)
    seconds: float = 0.0
    draining: bool = False
    _tallies: dict[int, Tally] = field(default_factory=dict)
    _running: int = 0
    _kv_share: float = 0.0
    _steps: int = 0
    _prompt_tokens: int = 0
    _cached_tokens: int = 0
    _output_tokens: int = 0
    _preemptions: int = 0

    def begin(self, uid: int, tally: Tally) -> None:
        """A request was given to vLLM."""
        self._tallies[uid] = tally

    def drew(self, uid: int, tokens: int, cached: int) -> None:
        """A request got ``tokens``; ``cached`` counts on the first of them."""
        tally = self._tallies[uid]
        if not tally.drawn:
            tally.computed = tally.prompt
            self._prompt_tokens += tally.prompt
            self._cached_tokens += cached
        tally.drawn += tokens
        self._output_tokens += tokens

    def end(self, uid: int) -> None:
        """A request has ended, however it did; unknown ones are no fault."""
        self._tallies.pop(uid, None)

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """What vLLM calls after each step, before our requests hear of what it brought."""
        if iteration_stats is not None:
            self._preemptions += iteration_stats.num_preempted_reqs
        if scheduler_stats is None:
            return
        self._running = scheduler_stats.num_running_reqs
        self._kv_share = scheduler_stats.kv_cache_usage
        details = scheduler_stats.iteration_details
        if details is None or details.is_dummy:
            return
        self._steps += 1
        self.seconds = details.elapsed_ms / 1000
        self.steptime.observe(self._work(details), self.seconds)

    def load(self) -> Load:
        """The report for gateways."""
        live = len(self._tallies)
        running = min(self._running, live)
        owed = Work(0, 0, 0, 0)
        decoding, context = 0, 0
        for tally in self._tallies.values():
            if tally.background:
                continue
            if tally.drawn:
                decoding += 1
                context += tally.prompt + tally.drawn
            else:
                owed = _add(owed, _slice(tally.computed, tally.prompt - tally.computed))
        return Load(
            waiting=live - running,
            running=running,
            waiting_tokens=owed.tokens,
            kv_used=int(self._kv_share * self.kv_total) if live else 0,
            kv_total=self.kv_total,
            backlog=self._backlog(owed, decoding, context),
            prefill_rate=self.steptime.prefill_rate,
            steps_total=self._steps,
            prompt_tokens_total=self._prompt_tokens,
            cached_tokens_total=self._cached_tokens,
            output_tokens_total=self._output_tokens,
            preemptions_total=self._preemptions,
            decoding=decoding,
            decode_context=context,
            coefficients=self.steptime.coefficients,
            draining=self.draining,
        )

    def _work(self, details: Any) -> Work:
        """What a step did: its decodes as we count them, its prefill dealt out in the order in which requests came."""
        tallies = self._tallies.values()
        contexts = [tally.prompt + tally.drawn for tally in tallies if tally.drawn]
        count = min(len(contexts), details.num_generation_requests)
        context = sum(contexts) * count // max(1, len(contexts))
        work = Work(count, context, context, count)
        left = details.num_ctx_tokens
        for tally in tallies:
            if left and not tally.drawn and tally.computed < tally.prompt:
                taken = min(left, tally.prompt - tally.computed)
                work = _add(work, _slice(tally.computed, taken))
                tally.computed += taken
                left -= taken
        return work

    def _backlog(self, owed: Work, decoding: int, context: int) -> float:
        """Seconds until all prefill has been computed, while decodes take their share of every step."""
        if not owed.tokens:
            return 0.0
        decodes = self.steptime.predict(Work(decoding, context, context, decoding)) if decoding else 0.0
        share = min(decodes / max(self.tpot, 1.25 * decodes), 0.8) if decodes else 0.0
        return self.steptime.predict(owed) / (1 - share)


def _slice(start: int, count: int) -> Work:
    """The work of computing ``count`` tokens after ``start``."""
    return Work(count, start + count, count * start + count * (count + 1) // 2, 1) if count else Work(0, 0, 0, 0)


def _add(one: Work, other: Work) -> Work:
    return Work(*(a + b for a, b in zip(one, other, strict=True)))
