"""One worker in simulated time: the scheduler under test, and an arithmetic step in place of a model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from scheduler.batch import Plan, Request, Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.steptime import Coefficients, StepTime, Work

# A step of 10 ms, and 10,000 tokens/s of prefill.
MACHINE = Coefficients(step=0.01, token=1e-4, context=0.0, pair=0.0, request=0.0)
NO_EOS = 2**31 - 1


def seconds_of(work: Work, machine: Coefficients = MACHINE) -> float:
    """How long ``machine`` takes for a step."""
    return sum(coefficient * amount for coefficient, amount in zip(machine, (1, *work), strict=True))


def make_request(uid: int, length: int, output: int = 8, **fields: Any) -> Request:
    """A request whose tokens no other shares, unless ``tokens`` says so."""
    given: dict[str, Any] = {
        "uid": uid,
        "tokens": [1000 * uid + i for i in range(length)],
        "max_tokens": output,
        "max_len": 100_000,
        "ttft": 1.0,
        "tpot": 0.05,
    }
    given.update(fields)
    return Request(**given)


def make_scheduler(blocks: int = 1000, block_size: int = 16, **settings: Any) -> Scheduler[Request]:
    """A scheduler that knows the machine already."""
    config = SchedulerConfig(**settings)
    return Scheduler(config, BlockPool(blocks, block_size), StepTime(MACHINE))


@dataclass
class Trace:
    """What happened: the plans, and when each request got each token."""

    plans: list[Plan[Request]] = field(default_factory=list)
    tokens: dict[int, list[float]] = field(default_factory=dict)
    preemptions: int = 0
    end: float = 0.0

    def ttft(self, request: Request) -> float:
        """Seconds to the first token."""
        return self.tokens[request.uid][0] - request.arrival


def simulate(
    scheduler: Scheduler[Request],
    arrivals: Iterable[Request],
    *,
    machine: Coefficients = MACHINE,
    until: float = 1e9,
    after_step: Callable[[Plan[Request]], None] | None = None,
) -> Trace:
    """Add each request when it arrives and run until nothing is left, or ``until``."""
    queue = sorted(arrivals, key=lambda request: (request.arrival, request.uid))
    trace = Trace()
    now = 0.0
    while (queue or scheduler.busy) and now < until:
        if not scheduler.busy:
            now = max(now, queue[0].arrival)
        while queue and queue[0].arrival <= now:
            scheduler.add(queue.pop(0), now)
        plan = scheduler.schedule(now)
        assert plan.slices, "requests are live, and nothing is planned"
        seconds = seconds_of(plan.work, machine)
        now += seconds
        drawing = [piece.request for piece in plan.slices if piece.samples]
        scheduler.commit(plan, [NO_EOS] * len(drawing), now, seconds)
        for request in drawing:
            trace.tokens.setdefault(request.uid, []).append(now)
        trace.plans.append(plan)
        trace.preemptions += len(plan.preempted)
        if after_step is not None:
            after_step(plan)
    trace.end = now
    return trace
