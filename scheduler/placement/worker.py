"""How much work does a worker have, and how long will more of it take? From what it says, or from what we sent it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from scheduler.placement.backlog import Backlog
from scheduler.placement.job import Job
from scheduler.steptime import Coefficients

# Before anything is known of a worker: a GPU that prefills 20,000 tokens/s.
GUESS = Coefficients(step=5e-3, token=5e-5, context=3e-8, pair=0.0, request=0.0)
# Seconds in which a worker had prompts to read: what a measurement needs, and after which older ones count half.
_LEAST = 1.0
_SPAN = 20.0
# Workers that say they are more than so many times as fast as they were seen to be are not believed.
_BOAST = 4.0
# So many times slower or faster than the others, and a worker is another machine.
_UNLIKE = 3.0
_MOST_SLOWED = 5.0
# So many seconds, and what was reckoned of a worker is good enough if nothing happened there.
_FRESH = 5e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """What a worker is when it comes.

    Attributes:
        name: its own among all workers.
        chain: which of a job's chains its cache goes by, such as the name of a block size; only workers of the same
            one, and alike in ``exact``, can be compared by their caches.
        block_tokens: how many tokens of the prompt one hash of that chain stands for; an estimate where text is hashed.
        kv_tokens: what its KV cache holds; 0 if unknown.
        exact: it publishes KV events, which the caller follows; else we remember what we sent.
        speed: the seconds of its steps, where known before any report.
        shortest_first: it reads prompts in the order of their work, and interrupts a long one for a short one, as our
            own workers do; else in the order of their coming.
    """

    name: str
    chain: str = "16"
    block_tokens: int = 16
    kv_tokens: int = 0
    exact: bool = False
    speed: Coefficients | None = None
    shortest_first: bool = False


class Report(NamedTuple):
    """What a worker says of itself; None: it doesn't say, and what we know ourselves has to do.

    ``waiting_tokens``: prefill it has still to do, for everybody; ``backlog``: the same in seconds, used without them.
    ``running``, ``waiting``: requests; ``decoding`` of those that run decode, with ``context`` tokens together.
    ``kv_used``, ``kv_total``: tokens. ``speed``: seconds of its steps. ``age``: how many seconds ago, at most, it
    looked: what was sent since isn't in it.
    """

    backlog: float | None = None
    waiting_tokens: int | None = None
    waiting: int | None = None
    running: int | None = None
    decoding: int | None = None
    context: int | None = None
    kv_used: int | None = None
    kv_total: int | None = None
    speed: Coefficients | None = None
    age: float = 0.05


class Sent:
    """A job that a worker has, with ``hit`` of its tokens believed cached and ``work`` seconds of prefill at first."""

    __slots__ = ("at", "begun", "hit", "job", "left", "produced", "work")

    def __init__(self, job: Job, hit: int, work: float, at: float) -> None:
        self.job = job
        self.hit = hit
        self.work = work
        # Seconds of it that are thought to be left.
        self.left = work
        self.at = at
        # Its first token has come; and how many have.
        self.begun = False
        self.produced = 0

    @property
    def need(self) -> int:
        """Tokens of KV that it will have taken at its end, beside those it shares."""
        return self.job.prompt_tokens - self.hit + max(self.job.output_tokens, self.produced)


class Worker:
    """One worker, as the gateway sees it. The caller changes it only through the `Placer`."""

    __slots__ = (
        "_backlog",
        "_busy",
        "_context",
        "_decoding",
        "_done",
        "_looked",
        "_more",
        "_pace",
        "_reading",
        "_reckoned",
        "_slowed",
        "_unseen",
        "busy_until",
        "info",
        "is_changed",
        "need",
        "ready",
        "said",
        "sent",
        "speed",
        "taken",
        "tokens",
        "weight",
    )

    def __init__(self, info: WorkerInfo, now: float) -> None:
        self.info = info
        self.ready = True
        # Below 1 in a slow start: it counts as that much slower.
        self.weight = 1.0
        # The seconds of its steps, see `pool`.
        self.speed = info.speed or GUESS
        self.said = Report()
        self.sent: dict[int | str, Sent] = {}
        # Of our own jobs there: those that decode and their tokens; KV that all will need; prompt tokens to compute.
        self._decoding = 0
        self._context = 0
        self.need = 0
        self.tokens = 0
        # Prompt tokens that were ever sent there and were not believed cached.
        self.taken = 0
        # Seconds in which there was something to read, and tokens that were.
        self._busy = 0.0
        self._done = 0.0
        self._looked = now
        self._pace = self._slowed = 1.0
        self._reading = 0.0
        # Our jobs that have no first token yet; and seconds of prefill that it says are to be done beside theirs.
        self._backlog = Backlog(shortest_first=info.shortest_first, now=now)
        self._more = 0.0
        # Jobs that the last report doesn't know of.
        self._unseen: dict[int | str, Sent] = {}
        # Something happened since it was last reckoned; and when that was.
        self.is_changed = True
        self._reckoned = now
        # When it would begin to read the shortest of prompts, as of then.
        self.busy_until = now

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def requests(self) -> int:
        """How many it has: what it says, or ours."""
        report = self.said
        if report.running is None:
            return len(self.sent)
        return report.running + (report.waiting or 0) + len(self._unseen)

    @property
    def unread(self) -> int:
        """Prompt tokens that it has still to compute."""
        if self.said.waiting_tokens is None:
            return self.tokens
        return self.said.waiting_tokens + sum(one.job.prompt_tokens - one.hit for one in self._unseen.values())

    @property
    def decoding(self) -> int:
        """Requests that decode."""
        said = self.said.decoding
        return self._decoding if said is None else said

    @property
    def context(self) -> int:
        """Tokens of those that decode, whose KV each step reads."""
        said = self.said.context
        return self._context if said is None else said

    @property
    def kv_total(self) -> int:
        """Tokens that its KV cache holds; 0 if unknown."""
        return self.said.kv_total or self.info.kv_tokens

    @property
    def kv_used(self) -> int:
        """Tokens of KV that are in use, or will be by the jobs that we sent."""
        said = self.said.kv_used
        if said is None:
            return self.need
        return max(self.need, said + sum(one.need for one in self._unseen.values()))

    def fits(self, tokens: int, share: float) -> bool:
        """Whether ``tokens`` more fit a ``share`` of its KV cache. Always, if it is idle or its size is unknown."""
        total = self.kv_total
        return not total or not self.requests or self.kv_used + tokens <= share * total

    def work(self, prompt: int, hit: int) -> float:
        """Seconds of prefill, by itself, of a prompt with ``hit`` tokens cached (the last one never is)."""
        hit = min(hit, prompt - 1)
        return self.speed.token * (prompt - hit) + 0.5 * self.speed.pair * (prompt * prompt - hit * hit)

    def seconds(self, prompt: int, hit: int) -> float:
        """Seconds of prefill of a prompt beside this worker's decodes; more in a slow start."""
        return self._pace * self.work(prompt, hit)

    def reading(self, prompt: int) -> float:
        """Seconds, weighted, that decoding a token costs: the others' beside this prompt, and its own beside them."""
        return self._reading * (self.context + self.decoding * prompt)

    def reckon(self, step: float, weight: float, now: float) -> None:
        """See how much decodes slow prefill down now, and what is left to do. To be called before a decision.

        Steps last ``step`` seconds while there is prefill to do, and decodes have their share of each, so prefill has
        what is left. ``weight`` is that of a second of decoding.
        """
        if not self.is_changed and (not self._backlog or now - self._reckoned < _FRESH):
            return
        self.is_changed = False
        self._reckoned = now
        speed, decoding = self.speed, self.decoding
        self._reading = weight * speed.context
        slowed = 1.0
        if decoding:
            decode = speed.step + speed.context * self.context + speed.request * decoding
            slowed = min(1 + decode / max(step - decode, 0.25 * decode), _MOST_SLOWED)
        self._slowed = slowed
        self._pace = slowed / self.weight
        self._more = self._backlog.grow(max(0.0, self._said() - self._backlog.total(now)))
        self.busy_until = now + self.wait(0.0)

    def work_left(self, now: float) -> float:
        """Seconds of prefill that it has still to do, in a slow start as if it were that much slower."""
        return max(self._backlog.total(now), self._said()) / self.weight

    def wait(self, seconds: float) -> float:
        """After how long it would begin to read a prompt of so many seconds; as of the last `reckon`."""
        return (self._backlog.ahead(seconds) + self._more) / self.weight

    def is_free(self, within: float, now: float) -> bool:
        """Whether it would begin to read a short prompt in less than so many seconds; as of the last `reckon`."""
        return self.busy_until - now < within

    def overtaken(self, seconds: float) -> int:
        """How many prompts that it has would wait for one of so many seconds."""
        return self._backlog.overtaken(seconds)

    def changed(self) -> None:
        """Its speed or weight is another."""
        self.is_changed = True

    def _said(self) -> float:
        """What it says it has to do, and what it can't know of yet; 0 if it doesn't say."""
        said = self.said
        if said.waiting_tokens is not None:
            return self._slowed * self.speed.token * self.unread
        if said.backlog is not None:
            return said.backlog + sum([one.work for one in self._unseen.values()])
        return 0.0

    def take(self, sent: Sent) -> None:
        """A job goes there now."""
        self.is_changed = True
        self._count(sent.at)
        self.sent[sent.job.uid] = self._unseen[sent.job.uid] = sent
        self._backlog.add(sent, sent.at)
        self.tokens += sent.job.prompt_tokens - sent.hit
        self.taken += sent.job.prompt_tokens - sent.hit
        self.need += sent.need

    def begun(self, uid: int | str, now: float) -> None:
        """A job's first token has come."""
        sent = self.sent[uid]
        if sent.begun:
            return
        self.is_changed = True
        sent.begun = True
        self._decoding += 1
        self._context += sent.job.prompt_tokens
        self._done += sent.job.prompt_tokens - sent.hit
        self._read(sent, now)

    def produced(self, uid: int | str, tokens: int) -> None:
        """So many tokens of a job's answer have come, all together."""
        sent = self.sent[uid]
        self.is_changed = True
        more = tokens - sent.produced
        self.need -= sent.need
        sent.produced = tokens
        self.need += sent.need
        if sent.begun:
            self._context += more

    def ended(self, uid: int | str, now: float) -> Sent:
        """A job has ended, whatever the end."""
        sent = self.sent.pop(uid)
        self.is_changed = True
        self._unseen.pop(uid, None)
        self.need -= sent.need
        if sent.begun:
            self._decoding -= 1
            self._context -= sent.job.prompt_tokens + sent.produced
        else:
            self._read(sent, now)
        return sent

    def report(self, report: Report, now: float) -> None:
        """It says how it is."""
        self.is_changed = True
        self.said = report
        looked = now - report.age
        self._unseen = {uid: sent for uid, sent in self._unseen.items() if sent.at > looked}
        if report.waiting_tokens is None and report.backlog is not None:
            self._backlog.at_most(self._said(), now)

    def _read(self, sent: Sent, now: float) -> None:
        """A job's prompt is computed, or no longer wanted; the work of those before it was done meanwhile."""
        self._count(now)
        self._unseen.pop(sent.job.uid, None)
        self.tokens -= sent.job.prompt_tokens - sent.hit
        self._backlog.remove(sent, now)

    def _count(self, now: float) -> None:
        """Measure how fast it reads prompts: over the time in which it has some, the latest counting most."""
        if self.tokens:
            self._busy += now - self._looked
        self._looked = now
        if self._busy > _SPAN:
            self._busy *= 0.5
            self._done *= 0.5

    def measured(self) -> float:
        """Seconds that a prompt token was seen to take it; 0 before it has had enough to read to tell."""
        return self._busy / self._done if self._busy > _LEAST and self._done else 0.0


def pool(workers: Sequence[Worker]) -> None:
    """Set how fast workers are: all alike, but for one that was seen to be much slower or faster than the others.

    What a worker learns of its own steps is good for predicting them, but two fits of equal machines may share the
    seconds out quite differently, and the one that makes prompts look cheap would attract them. Their medians are
    better for comparing workers.
    """
    said = [speed for worker in workers if (speed := worker.said.speed or worker.info.speed) is not None]
    seen = [worker.measured() for worker in workers]
    measured = [token for token in seen if token]
    usual = median(measured) if measured else 0.0
    speed = Coefficients(*map(median, zip(*said, strict=True))) if said else GUESS._replace(token=usual or GUESS.token)
    if usual:
        speed = speed._replace(token=max(speed.token, usual / _BOAST))
    for worker, token in zip(workers, seen, strict=True):
        times = token / usual if token else 1.0
        alike = 1 / _UNLIKE <= times <= _UNLIKE
        worker.changed()
        worker.speed = speed if alike else speed._replace(token=times * speed.token, pair=times * speed.pair)
