"""Which worker of a model answers a request, and what becomes of the request when that worker is lost?

A `Fleet` has the workers that serve one model, and a `scheduler.placement.Placer` that decides who goes where. Requests
wait here until it has decided. When a worker dies, falls silent or talks nonsense, what it had is placed again: as it
was, if nothing of the answer has come, else as a continuation, which carries the answer so far (`Ask.message`). Whoever
reads the answer sees no seam. Only what has taken `MOST_PLACEMENTS` workers with it, and what finds nobody to take it
within ``patience``, fails. Workers that fail again and again get nothing for a while, those that come back little at
first (`gateway.fleet.health`).
"""

import asyncio
import copy
import logging
import math
import sys
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from engine.link import Blocks, Failed, Follow, Hello, Load
from gateway.fleet.health import Health
from gateway.fleet.native import Ask, OutputStream, RequestFailed, WorkerLost
from gateway.fleet.worker import Worker
from gateway.telemetry.metrics import Metrics
from scheduler.blocks import chain_hashes, root_hash
from scheduler.placement import Job, Placed, PlacementConfig, Placer, Report, WorkerInfo
from scheduler.prefix_index import Chain, chain, chain_of_digests
from scheduler.steptime import Coefficients

MOST_PLACEMENTS: Final = 3
_BLOCKS: Final = "blocks"  # the capability of workers that say what they have cached
_USUAL_ANSWER: Final = 256  # tokens that an answer is expected to have, if it may have as many
_IN_THE_MIDDLE: Final = 1_000_000
_SLACK: Final = 0.01  # seconds by which a timer may come early
_COUNT_EVERY: Final = 0.5  # seconds from one look at how long a worker's answers have become to the next

log = logging.getLogger(__name__)


class Fleet:
    """The workers of one model. Belongs to one event loop; it is what `OutputStream` calls a carrier.

    Args:
        name: the model's.
        placement: how workers are chosen.
        patience: seconds for which requests wait while there is no worker to take them.
        longest_wait: a request whose first token can't be there within so many seconds is refused at once.
    """

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        placement: PlacementConfig | None = None,
        *,
        patience: float = 15.0,
        longest_wait: float | None = None,
    ) -> None:
        self.name = name
        self.workers: dict[str, Worker] = {}
        self._moved = metrics.moved.labels(name)
        metrics.held.labels(name).set_function(lambda: self.held)
        self._placer = Placer(placement)
        self._patience = patience
        self._longest_wait = longest_wait
        self._loop = asyncio.get_running_loop()
        # What waits for a worker: what the placer decides about, and what goes to whoever has least to do.
        self._waiting: dict[int, Ask] = {}
        self._direct: dict[int, Ask] = {}
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._stranded_since = self._loop.time()
        self._stranded: asyncio.TimerHandle | None = None
        self._followed: set[Worker] = set()
        self._health = Health()
        self._allowed: set[str] = set()
        self._recovering: asyncio.TimerHandle | None = None
        self._counted: dict[str, float] = {}
        self._whole, self._adapter = self, ""
        self._chained: tuple[Sequence[int], str, str, Mapping[str, Chain]] = ((), "", "", {})

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it belongs to."""
        return self._loop

    @property
    def ready(self) -> bool:
        """Whether any worker takes requests now."""
        return any(worker.ready for worker in self.workers.values())

    @property
    def state(self) -> str:
        """What the workers do, where none is ready, in words that go after "is"."""
        return next((worker.state for worker in self.workers.values()), "missing")

    @property
    def backlog(self) -> float:
        """Seconds until the least busy worker has computed the prompts that it has."""
        return min((worker.backlog for worker in self.workers.values() if worker.ready), default=0.0)

    @property
    def held(self) -> int:
        """Requests that no worker has yet."""
        return len(self._waiting) + len(self._direct)

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request that every worker can take."""
        return min((worker.hello.max_model_len for worker in self.workers.values() if worker.hello), default=0)

    def open(self) -> OutputStream:
        """A stream to submit requests to."""
        return OutputStream(self._whole, self._adapter)

    def adapted(self, adapter: str) -> "Fleet":
        """The same fleet, for those who want an adapter that all its workers have loaded: what they `open` asks for it.

        Nothing but to be asked what it is like, `open` and `interrupt_all` is meant for this view.
        """
        view = copy.copy(self)
        view._adapter = adapter
        return view

    def interrupt_all(self, make_reason: Callable[[], BaseException]) -> None:
        """End every request, waiting ones too, and raise a reason in each task that waits for one."""
        for stream in {ask.stream for ask in (*self._waiting.values(), *self._direct.values())}:
            stream.interrupt(make_reason())
        for worker in self.workers.values():
            worker.interrupt_all(make_reason)

    # Requests come and go.

    def submit(self, ask: Ask) -> None:
        """Take a request; it is placed as soon as this turn of the event loop is over, if it can be."""
        self._hold(ask)

    def abort(self, asks: Collection[Ask]) -> None:
        """Have requests forgotten at once, wherever they are."""
        now = self._loop.time()
        for ask in asks:
            self._waiting.pop(ask.id, None)
            self._direct.pop(ask.id, None)
            self._placer.finished(ask.id, now)
            if ask.link is not None:
                ask.link.abort((ask,))
                self._nothing_said(ask)
        self._decide_soon()

    def lost(self, ask: Ask, reason: str) -> None:
        """Place a request again whose worker has gone."""
        worker = _worker_of(ask)
        if worker is not None:
            ask.avoid |= {worker.name}
        ask.link = None
        ask.mishap = f"{reason}, and "
        if ask.placements >= MOST_PLACEMENTS:
            self._give_up(ask, WorkerLost(f"{ask.mishap}{ask.placements} workers were lost with this request"))
            return
        if ask.answer:
            self._moved.inc()
        self._hold(ask)

    def refused(self, ask: Ask, failed: Failed) -> None:
        """Place a request again that a worker refused because it is going; else pass on what it said."""
        worker, now = _worker_of(ask), self._loop.time()
        if worker is not None and failed.code == "internal":
            self._health.failed(worker.name, now)
            self._share_out()
        else:
            self._nothing_said(ask)
        ask.link = None
        self._placer.finished(ask.id, now)
        if failed.code != "draining":
            self._give_up(ask, RequestFailed(failed))
            return
        if worker is not None:
            worker.leave()
        ask.placements -= 1
        self._hold(ask)

    def begun(self, ask: Ask) -> None:
        """The worker has computed the request's prompt."""
        self._placer.first_token(ask.id, self._loop.time())
        self._decide_soon()

    def ended(self, ask: Ask) -> None:
        """The request has its answer."""
        now = self._loop.time()
        self._placer.finished(ask.id, now)
        worker = _worker_of(ask)
        if worker is not None and self._health.answered(worker.name, now):
            self._share_out()
        self._decide_soon()

    # Workers come and go.

    def misfit(self, worker: Worker, hello: Hello) -> str:
        """Why a worker that says this can't go on with what the others have begun; empty: it can."""
        for other in self.workers.values():
            known = other.hello
            if other is not worker and known is not None and known.vocab_size != hello.vocab_size:
                return f"its vocabulary has {hello.vocab_size} tokens, that of worker {other.name} {known.vocab_size}"
        return ""

    def worker_up(self, worker: Worker) -> None:
        """A worker takes requests."""
        hello = worker.hello
        assert hello is not None
        self.workers[worker.name] = worker
        info = WorkerInfo(
            name=worker.name,
            chain=str(hello.block_size),
            block_tokens=hello.block_size,
            kv_tokens=hello.kv_tokens,
            exact=_BLOCKS in hello.capabilities,
            shortest_first=hello.engine == "native",
        )
        now = self._loop.time()
        self._placer.worker_up(info, now)
        self._health.up(worker.name, now)
        self._followed.discard(worker)
        if len(self.workers) > 1:
            self._follow_all()
        self._readiness_changed()

    def worker_changed(self, worker: Worker) -> None:
        """A worker takes requests now, or doesn't, unlike before."""
        if worker.name in self._placer.workers:
            self._readiness_changed()

    def worker_reported(self, worker: Worker) -> None:
        """A worker has said how busy it is."""
        if worker.load is not None and worker.name in self._placer.workers:
            now = self._loop.time()
            self._placer.report(worker.name, _report(worker.load), now)
            if now - self._counted.get(worker.name, 0.0) >= _COUNT_EVERY and worker.link is not None:
                self._counted[worker.name] = now
                for ask in worker.link.asks:
                    self._placer.progressed(ask.id, len(ask.answer), now)
            self._decide_soon()

    def worker_cached(self, worker: Worker, blocks: Blocks) -> None:
        """A worker's prefix cache has changed."""
        placer, name = self._placer, worker.name
        if name in placer.workers:
            if blocks.cleared:
                placer.cleared(name)
            if blocks.removed:
                placer.removed(name, chain(_unpacked(blocks.removed)))
            if blocks.stored:
                placer.stored(name, chain(_unpacked(blocks.stored)))

    def worker_down(self, worker: Worker) -> None:
        """A worker has gone; its requests come back through `lost`."""
        now = self._loop.time()
        if worker.name in self._placer.workers:  # else it was lost before it was ready
            self._placer.worker_down(worker.name, now)
        if worker.state == "shutting down":
            self._health.given_up(worker.name)
        else:
            self._health.failed(worker.name, now)
        self._readiness_changed()

    def forget(self, worker: Worker) -> None:
        """A worker that has gone won't come back, or serves another model now."""
        self.workers.pop(worker.name, None)
        self._health.forget(worker.name)
        self._counted.pop(worker.name, None)

    def _follow_all(self) -> None:
        """Where there is something to choose, know what each worker has cached."""
        for worker in self.workers.values():
            link, hello = worker.link, worker.hello
            follows = worker in self._followed or hello is None or _BLOCKS not in hello.capabilities
            if link is not None and not follows:
                self._followed.add(worker)
                link.send(Follow())

    def _nothing_said(self, ask: Ask) -> None:
        """A request has ended in a way that is not its worker's doing."""
        worker = _worker_of(ask)
        if worker is not None:
            self._health.given_up(worker.name)

    def _share_out(self) -> None:
        """Tell the placer who may have requests now, and how much; look again when that will have changed."""
        now, there = self._loop.time(), self._placer.workers
        ready = [name for name, worker in self.workers.items() if worker.ready and name in there]
        shares = self._health.shares(ready, now)
        for name in self.workers.keys() & there.keys():
            share = shares.get(name)
            self._placer.allow(name, share is not None and share.allowed, share.weight if share is not None else 1.0)
        if self._recovering is not None:
            self._recovering.cancel()
        wait = self._health.next_look(now)
        self._recovering = None if wait is None else self._loop.call_later(wait, self._recover)
        self._allowed = {name for name, share in shares.items() if share.allowed}
        self._reconsider(self._allowed)

    def _recover(self) -> None:
        self._share_out()
        self._decide_soon()

    def _reconsider(self, allowed: Collection[str]) -> None:
        """Those that avoid all who are left must go to one of them after all."""
        for ask in self._waiting.values():
            if ask.avoid and allowed and ask.avoid.issuperset(allowed):
                ask.avoid = frozenset()
                now = self._loop.time()
                self._placer.finished(ask.id, now)
                self._placer.arrived(self._job(ask, ask.held), now)

    def _readiness_changed(self) -> None:
        self._share_out()
        if self.ready:
            self._decide_soon()
        else:
            self._stranded_since = self._loop.time()
            self._mind_the_stranded()

    def _hold(self, ask: Ask) -> None:
        now = ask.held = self._loop.time()
        if ask.options.get("background") or len(self.workers) == 1:
            self._direct[ask.id] = ask
        else:
            self._waiting[ask.id] = ask
            if ask.avoid.issuperset(name for name, worker in self.workers.items() if worker.ready):
                ask.avoid = frozenset()
            self._placer.arrived(self._job(ask, now), now)
        if self.ready:
            self._decide_soon()
        else:
            self._mind_the_stranded()

    def _job(self, ask: Ask, now: float) -> Job:
        """What the placer needs to know of a request."""
        options, answered = ask.options, len(ask.answer)
        expected = min(ask.sampling.max_tokens, _USUAL_ANSWER)
        tenant = options.get("tenant", "")
        return Job(
            uid=ask.id,
            prompt_tokens=len(ask.prompt) + answered,
            chains=self._chains(ask),
            output_tokens=0 if options.get("embed") else max(1, expected - answered),
            # Who is in the middle of an answer goes before all who have none yet.
            priority=options.get("priority", 0) + (_IN_THE_MIDDLE if answered else 0),
            tenant=tenant,
            session=tenant,
            arrival=now,
            deadline=None if answered or self._longest_wait is None else ask.since + self._longest_wait,
            excluded=ask.avoid,
        )

    def _chains(self, ask: Ask) -> Mapping[str, Chain]:
        """The hashes of the prompt's blocks, for each size of block that workers have."""
        if len(self.workers) < 2:
            return {}
        adapter, salt = ask.options.get("adapter", ""), ask.options.get("salt", "")
        prompt, of_adapter, of_salt, found = self._chained
        if prompt is ask.prompt and of_adapter == adapter and of_salt == salt and not ask.answer:
            return found
        sizes = {worker.hello.block_size for worker in self.workers.values() if worker.hello is not None}
        tokens = [*ask.prompt, *ask.answer] if ask.answer else ask.prompt
        root = root_hash(adapter, salt)
        found = {str(size): chain_of_digests(chain_hashes(tokens, size, root)) for size in sizes}
        if not ask.answer:
            self._chained = ask.prompt, adapter, salt, found
        return found

    # Decisions.

    def _decide_soon(self) -> None:
        if self._soon is None and (self._waiting or self._direct):
            self._soon = self._loop.call_soon(self._decide)

    def _decide(self) -> None:
        for handle in (self._soon, self._later):
            if handle is not None:
                handle.cancel()
        self._soon = self._later = None
        now = self._loop.time()
        for decision in self._placer.decide(now):
            ask = self._waiting.pop(int(decision.job.uid))
            if isinstance(decision, Placed):
                self._send(ask, self.workers[decision.worker])
            else:
                self._refuse(ask, decision.retry_after)
        if self._direct:
            self._send_direct(now)
        look = self._placer.next_look(now)
        if look is not None:
            self._later = self._loop.call_at(look, self._decide)

    def _send_direct(self, now: float) -> None:
        """Place what the placer has no part in: where there is one worker, and background work.

        Nobody waits behind background work, so none of it counts for those that the placer places.
        """
        for ask in list(self._direct.values()):
            ready = [worker for worker in self.workers.values() if worker.ready and worker.name in self._allowed]
            if not ready:
                return
            del self._direct[ask.id]
            worker = min(ready, key=lambda worker: worker.requests)
            late = now + worker.backlog - ask.since - (self._longest_wait or math.inf)
            if late > 0 and not ask.answer and not ask.options.get("background"):
                self._refuse(ask, late)
            else:
                self._send(ask, worker)

    def _send(self, ask: Ask, worker: Worker) -> None:
        assert worker.link is not None, "a worker without a link has told so"
        worker.link.submit(ask)
        if self._health.sent(worker.name):
            self._share_out()

    def _refuse(self, ask: Ask, retry_after: float) -> None:
        said = Failed(ask.id, "overloaded", "the first token could not come in time", retry_after)
        self._give_up(ask, RequestFailed(said))

    def _give_up(self, ask: Ask, reason: BaseException) -> None:
        self._placer.finished(ask.id, self._loop.time())
        ask.stream.fail(reason, ask.id)

    def _mind_the_stranded(self) -> None:
        if self._stranded is None and (self._waiting or self._direct):
            self._stranded = self._loop.call_later(self._patience, self._give_up_the_stranded)

    def _give_up_the_stranded(self) -> None:
        """Fail what has waited in vain for a worker to come back."""
        self._stranded = None
        if self.ready:
            return
        now = self._loop.time()
        for waiting in (self._waiting, self._direct):
            for ask in list(waiting.values()):
                if now - max(ask.held, self._stranded_since) >= self._patience - _SLACK:
                    del waiting[ask.id]
                    self._give_up(ask, WorkerLost(f"{ask.mishap}the worker is {self.state}"))
        self._mind_the_stranded()


def _worker_of(ask: Ask) -> Worker | None:
    """The worker that has a request, also just after it has gone."""
    owner = ask.link.owner if ask.link is not None else None
    return owner if isinstance(owner, Worker) else None


def _unpacked(hashes: bytes) -> "array[int]":
    words = array("Q", hashes)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def _report(load: Load) -> Report:
    return Report(
        backlog=load.backlog,
        waiting_tokens=load.waiting_tokens,
        waiting=load.waiting,
        running=load.running,
        decoding=load.decoding,
        context=load.decode_context,
        kv_used=load.kv_used,
        kv_total=load.kv_total,
        speed=Coefficients(*load.coefficients) if any(load.coefficients) else None,
    )
