"""What does one worker do in simulated time? Production's scheduler, in the order of production's pipeline.

Where the machine computes on its own (``ahead``), step N+1 is planned when N begins, as `engine.pipeline` does it;
otherwise each step is over before the next is planned. Nothing else is modelled: neither the gateway's nor the host's
time, unless the machine's figures include it.
"""

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp

from bench.load.workload import Outline
from bench.simulate.gaps import ServiceGaps
from bench.simulate.machines import Machine
from bench.simulate.prompts import STOP, Prompts, token
from bench.simulate.steptime import CompiledStepTime
from scheduler.batch import Plan, Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.load import LoadReport
from scheduler.request import ENDED, WAITING, Request
from scheduler.steptime import Work

_STOPS = frozenset({STOP})

StepHook = Callable[[int, float, Work, float], None]
"""Called with (worker, when the step ended, its work, how long it took)."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A worker's machine and settings.

    ``max_tokens``: what every request asks for, and stops before by itself, as people's do; None: it asks for what it
    gets, as load tests do, so that the scheduler knows the length. ``fair``: measure how unequally
    tenants are served.
    """

    machine: Machine
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    block_size: int = 16
    max_len: int = 131_072
    max_tokens: int | None = None
    seed: int = 0
    fair: bool = False


class SimRequest(Request):
    """A request that gets ``answer`` tokens. ``times`` are when they came, in seconds."""

    __slots__ = ("answer", "outline", "times")

    def __init__(
        self,
        setting: Setting,
        prompts: Prompts,
        outline: Outline,
        arrival: float,
        length: int = 0,
        before: Sequence[bytes] = (),
        tenant: str = "",
    ) -> None:
        """The request of an outline. ``length`` tokens, in the blocks ``before``, were said in its conversation so far.

        Raises:
            ValueError: the worker's context is too short for it.
        """
        prompt = prompts.make(
            outline.index, length + outline.input_tokens, outline.blocks, outline.block_tokens, before
        )
        super().__init__(
            uid=outline.index,
            tokens=prompt.tokens,
            max_tokens=max(setting.max_tokens or 0, outline.output_tokens),
            max_len=setting.max_len,
            ttft=setting.config.ttft,
            tpot=setting.config.tpot,
            stop_ids=_STOPS,
            arrival=arrival,
            tenant=tenant,
        )
        if setting.config.prefix_cache:
            self.hashes = prompt.hashes
        self.outline = outline
        self.answer = min(outline.output_tokens, self.limit - self.prompt_len)
        self.times = array("d")


class SimWorker:
    """One worker. Its times come in as arguments; `add` and `wake` or `step_ended` are all that happens to it."""

    __slots__ = (
        "_config",
        "_draw",
        "_following",
        "_inbox",
        "_jitter",
        "_machine",
        "_running",
        "_seconds",
        "begun",
        "gaps",
        "index",
        "on_step",
        "outstanding",
        "scheduler",
        "unread",
    )

    def __init__(self, index: int, setting: Setting) -> None:
        """An idle worker with an empty cache, that has measured no step yet."""
        machine = setting.machine
        blocks = machine.kv_tokens // setting.block_size
        self.index = index
        self.scheduler: Scheduler[SimRequest] = Scheduler(
            setting.config, BlockPool(blocks, setting.block_size), CompiledStepTime()
        )
        self._machine = machine
        self._config = setting.config
        self._jitter = machine.jitter
        self._draw = random.Random(f"{setting.seed}:worker {index}").gauss
        self._inbox: list[SimRequest] = []
        self._running: Plan[SimRequest] | None = None
        self._following: Plan[SimRequest] | None = None
        self._seconds = 0.0
        self.gaps = ServiceGaps() if setting.fair else None
        self.on_step: StepHook | None = None
        # What a gateway knows: tokens of all requests that are here, prompts and answers; and of the prompts that have
        # no first token yet.
        self.outstanding = 0
        self.unread = 0
        # Whose first token came with the step that ended last.
        self.begun: list[SimRequest] = []

    @property
    def idle(self) -> bool:
        """Whether it waits for a request."""
        return self._running is None

    @property
    def load(self) -> LoadReport:
        """How busy it is."""
        return self.scheduler.load(0.0)

    def fault(self, request: SimRequest) -> str:
        """Why it can't take a request, as the worker would say; empty if it can."""
        pool = self.scheduler.pool
        room = pool.num_blocks * pool.block_size
        need = request.limit - 1
        return f"the request needs KV for {need} tokens, the worker holds {room}" if need > room else ""

    def add(self, request: SimRequest) -> None:
        """A request comes in. It is looked at between two steps."""
        self._inbox.append(request)
        self.outstanding += request.prompt_len + request.answer
        self.unread += request.prompt_len

    def wake(self, now: float) -> float | None:
        """Begin a step if it is idle and there is something to do. When the step ends; None if there is none."""
        self._read(now)
        plan = self.scheduler.schedule(now)
        if not plan.slices:
            return None
        ends = self._begin(plan, now)
        if self._machine.ahead:
            self.scheduler.advance(plan)
            self._look_ahead(now)
        return ends

    def step_ended(self, now: float) -> tuple[list[SimRequest], float | None]:
        """The step that ran is over. Who is through, and when the next step ends, if there is one."""
        plan = self._running
        assert plan is not None
        done = self._take_in(plan, now)
        self._running = None
        if not self._machine.ahead:
            return done, self.wake(now) if self.scheduler.busy or self._inbox else None
        following = self._following
        if following is None:
            return done, self.wake(now) if self.scheduler.busy or self._inbox else None
        self._following = None
        self.scheduler.advance(following)
        ends = self._begin(following, now)
        self._read(now)
        self._look_ahead(now)
        return done, ends

    def _begin(self, plan: Plan[SimRequest], now: float) -> float:
        seconds = self._machine.seconds(plan.work)
        if self._jitter:
            seconds *= exp(self._draw(-0.5 * self._jitter**2, self._jitter))
        self._running, self._seconds = plan, seconds
        return now + seconds

    def _look_ahead(self, now: float) -> None:
        """Plan the step after the one that begins now: it should begin when that one should end."""
        assert self._running is not None
        following = self.scheduler.schedule(now + self._running.predicted)
        self._following = following if following.slices else None

    def _read(self, now: float) -> None:
        if self._inbox:
            for request in self._inbox:
                self.scheduler.add(request, now)
                if self.gaps is not None:
                    self.gaps.want(request.tenant)
            self._inbox.clear()

    def _take_in(self, plan: Plan[SimRequest], now: float) -> list[SimRequest]:
        """Commit a step. Who is through."""
        sampled, done = [], []
        self.begun = []
        gaps = self.gaps
        if gaps is not None:
            self._serve(plan, gaps)
        for request, _, _, samples in plan.slices:
            if not samples:
                continue
            state = request.state
            if state in (WAITING, ENDED):
                sampled.append(0)
                continue
            times = request.times
            if not times:
                self.unread -= request.prompt_len
                self.begun.append(request)
                if gaps is not None:
                    gaps.content(request.tenant)
            times.append(now)
            if len(times) < request.answer:
                sampled.append(token(request.uid))
            else:
                sampled.append(STOP)
                done.append(request)
                self.outstanding -= request.prompt_len + request.answer
        self.scheduler.commit(plan, sampled, now, self._seconds)
        if gaps is not None:
            gaps.look()
        if self.on_step is not None:
            self.on_step(self.index, now, plan.work, self._seconds)
        return done

    def _serve(self, plan: Plan[SimRequest], gaps: ServiceGaps) -> None:
        config = self._config
        for request, start, count, samples in plan.slices:
            if start >= request.prompt_len:
                gaps.serve(request.tenant, config.output_cost)
                continue
            cached = config.cached_cost * request.cached if start == request.cached else 0.0
            gaps.serve(request.tenant, cached + count + config.output_cost * samples)
