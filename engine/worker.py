"""What does a worker process do from its start to its end?

It listens at once, tells whoever connects how the loading goes, says `Hello` when it can answer, and then repeats: take
what gateways sent, run one engine step, send each gateway one frame with all that the step brought it. One thread does
everything, so nothing here needs a lock, and an abort frees its blocks before the next step is planned. Only grammars
are compiled elsewhere: their requests wait outside of the scheduler until that is done. And a thread repeats the load
report while a long step computes, with what has come meanwhile: gateways see that the worker lives, and what the others
have sent it.
"""

import gc
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType

import msgspec
import numpy as np
import torch
from llguidance import LLMatcher

from engine.checks import Fault, fault_of
from engine.compiling import Compiling
from engine.config import ModelFault
from engine.connections import Connection, listen
from engine.engine import Engine
from engine.events import KvEventPublisher, changes_of, packed
from engine.heartbeat import EVERY, Heartbeat
from engine.job import Job
from engine.link import (
    PROTOCOL,
    Abort,
    Blocks,
    Drain,
    Failed,
    Follow,
    Hello,
    Load,
    LoadAdapter,
    Output,
    Progress,
    Step,
    Submit,
)
from engine.options import WorkerOptions
from engine.pipeline import Drawn, Outcome

_LOAD_INTERVAL = 0.05
_IDLE_WAIT = 1.0  # how long a worker with nothing to do sleeps at most: it then looks whether its parent still lives

log = logging.getLogger(__name__)


class _ParentGone(Exception):
    """The process that started this worker has gone; nobody is left to answer to."""


class Worker:
    """One engine and the gateways connected to it.

    Args:
        options: how it was started.
        build: makes the engine; it calls the callback it is given with (stage, done, total) while it loads.
    """

    def __init__(
        self,
        options: WorkerOptions,
        build: Callable[[WorkerOptions, Callable[[str, int, int], None]], Engine] = Engine.build,
    ) -> None:
        self._options = options
        self._draining = False
        self._owners: dict[int, tuple[Connection, int]] = {}
        self._followers: set[Connection] = set()
        self._next_uid = 0
        self._last_load: Load | None = None
        self._load_due = 0.0
        self._news = False  # requests have come since the last look at the load
        self._connections = listen(options)
        self._heartbeat = Heartbeat(self._connections)
        self._compiling = Compiling()
        self._events: KvEventPublisher | None = None
        try:
            if options.kv_events:
                self._events = KvEventPublisher(options.kv_events, options.kv_replay)
            self._engine = build(options, self._report_progress)
        except BaseException:
            self._close()
            raise
        self._hello = self._make_hello()
        log.info("listening on %s", self._connections.address)
        self._connections.wake_on(self._compiling.descriptor)
        if self._events and self._events.descriptor is not None:
            self._connections.wake_on(self._events.descriptor)

    def run(self) -> None:
        """Serve until drained, or until the parent process has gone."""
        gc.collect()
        gc.freeze()  # what is here now stays: no later collection, in the middle of a step, has to look at it
        try:
            for connection in self._connections.alive:
                self._greet(connection)
            self._connections.arrived.clear()
            self._heartbeat.repeat(self._load(time.monotonic()))
            self._heartbeat.start()
            while not (self._draining and not self._owners):
                self._heartbeat.seen()
                self._check_parent()
                self._take_messages()
                for job, compiled in self._compiling.take():
                    self._start(job, compiled)
                self._report_load()
                self._connections.away(True)
                outcome = self._engine.step()
                self._connections.away(False)
                if outcome is not None:
                    self._publish(outcome)
                self._tell_of_blocks()
                if self._events:
                    self._events.serve_replays()
        except _ParentGone as gone:
            log.warning("%s: stopping", gone)
        finally:
            if self._engine.grammars:
                self._engine.grammars.close()
            self._close()

    def drain(self) -> None:
        """Refuse new requests, finish those at hand, then let `run` return."""
        self._draining = True

    def _take_messages(self) -> None:
        for connection, message in self._connections.poll(self._wait()):
            match message:
                case Submit():
                    self._submit(connection, message)
                case Abort():
                    self._abort(connection, message)
                case LoadAdapter():
                    why = "--engine native merges one when it starts (--adapter); --engine vllm takes them later"
                    self._connections.send(connection, Failed(message.id, "invalid_request", why))
                case Drain():
                    self.drain()
                case Follow():
                    self._follow(connection)
        for connection in self._connections.arrived:
            self._greet(connection)
        self._connections.arrived.clear()
        for connection in self._connections.closed:
            for uid in connection.uids.values():
                self._engine.abort(uid)
                del self._owners[uid]
            connection.uids.clear()
            self._followers.discard(connection)
        self._connections.closed.clear()

    def _follow(self, connection: Connection) -> None:
        pool = self._engine.pool
        pool.record_events()
        self._followers.add(connection)
        self._connections.send(connection, Blocks(True, stored=packed(pool.cached())))

    def _tell_of_blocks(self) -> None:
        """Tell everybody who follows what became of blocks."""
        events = self._engine.take_events()
        if self._events:
            self._events.publish(events)
        if events and self._followers:
            changes = changes_of(events)
            for connection in self._followers:
                self._connections.send(connection, changes)

    def _wait(self) -> float:
        """Seconds to sleep at most before the next look around."""
        if self._engine.busy:
            return 0.0
        return max(0.0, self._load_due - time.monotonic()) if self._load_is_news() else _IDLE_WAIT

    def _submit(self, connection: Connection, message: Submit) -> None:
        fault = self._fault(connection, message)
        if fault is not None:
            self._connections.send(connection, Failed(message.id, *fault))
            return
        self._news = True
        job = self._make_job(message)
        self._owners[job.uid] = (connection, message.id)
        connection.uids[message.id] = job.uid
        compiled: Future[LLMatcher] | None = None
        if self._engine.grammars and job.sampling.grammar and not message.embed:
            compiled = self._engine.grammars.compile(job.sampling.grammar)
            if not compiled.done():
                self._compiling.wait_for(job, compiled)
                return
        self._start(job, compiled)

    def _start(self, job: Job, compiled: Future[LLMatcher] | None) -> None:
        """Give a job to the engine, its grammar (if it has one) having been compiled, unless it was aborted."""
        if job.uid not in self._owners:
            return
        try:
            job.constraint = self._engine.constraint(job.sampling, compiled)
            self._engine.add(job)
        except ValueError as error:
            self._fail(job, str(error))

    def _fail(self, job: Job, why: str) -> None:
        """End a job that can't be answered."""
        connection, request = self._owners.pop(job.uid)
        del connection.uids[request]
        self._connections.send(connection, Failed(request, "invalid_request", why))

    def _make_job(self, message: Submit) -> Job:
        sampling, slo = message.sampling, message.slo
        tokens: list[int] = np.frombuffer(message.tokens, dtype="<i4").tolist()
        self._next_uid += 1
        return Job(
            uid=self._next_uid,
            tokens=tokens,
            sampling=sampling,
            seed=random.getrandbits(63) if sampling.seed is None else sampling.seed,
            answered=message.answered,
            # An embedding's prompt may fill the context: no token follows it.
            max_tokens=1 if message.embed else sampling.max_tokens,
            max_len=len(tokens) + 1 if message.embed else self._engine.max_model_len,
            stop_ids=self._engine.stop_ids(sampling),
            min_tokens=0 if message.embed else sampling.min_tokens,
            arrival=time.monotonic() - message.age,
            ttft=slo.ttft if slo else self._options.ttft,
            tpot=slo.tpot if slo else self._options.tpot,
            tenant=message.tenant,
            priority=message.priority,
            salt=message.salt,
            adapter=message.adapter,
            background=message.background,
            embed=message.embed,
            sketched=message.sketch,
        )

    def _fault(self, connection: Connection, message: Submit) -> Fault | None:
        """Why this request can't be taken, or None."""
        if self._draining:
            return "draining", "the worker is shutting down"
        if message.id in connection.uids:
            return "invalid_request", f"request {message.id} is running already"
        if message.adapter:
            return "invalid_request", f"this worker has no adapter {message.adapter!r}"
        engine = self._engine
        if message.sampling.grammar and engine.grammars is None:
            return (
                "invalid_request",
                "grammars need a tokenizer.json and an end-of-sequence token; this model lacks them",
            )
        return fault_of(message, vocab_size=engine.config.vocab_size, max_model_len=engine.max_model_len)

    def _abort(self, connection: Connection, message: Abort) -> None:
        for request in message.ids:
            uid = connection.uids.pop(request, None)
            if uid is not None:
                del self._owners[uid]
                self._engine.abort(uid)

    def _publish(self, outcome: Outcome) -> None:
        """Send each gateway what the step brought it, in one frame."""
        frames: dict[Connection, list[Output]] = {}
        owners = self._owners
        for made in outcome.drawn:
            job = made.job
            owner = owners.get(job.uid)
            if owner is None:
                continue
            connection, request = owner
            frames.setdefault(connection, []).append(_output(request, made))
            if job.finish is not None:
                del owners[job.uid], connection.uids[request]
        for job in outcome.embedded:
            owner = owners.pop(job.uid, None)
            if owner is not None:
                connection, request = owner
                frames.setdefault(connection, []).append(_embedding(request, job))
                del connection.uids[request]
        for connection, outputs in frames.items():
            self._connections.send(connection, Step(outputs, outcome.seconds))
        for job, why in outcome.stuck:
            if job.uid in owners:
                self._fail(job, why)

    def _load_is_news(self) -> bool:
        return bool(self._connections.alive) and self._load(time.monotonic()) != self._last_load

    def _load(self, now: float) -> Load:
        load = self._engine.load(now)
        return msgspec.structs.replace(load, draining=True) if self._draining else load

    def _report_load(self) -> None:
        """Say how busy the worker is, if that has changed; what isn't due yet the heartbeat may say."""
        now = time.monotonic()
        due = now >= self._load_due
        if not due and not self._news:
            return
        self._news = False
        load = self._load(now)
        due = due and load != self._last_load
        self._heartbeat.repeat(load, sent=due)
        if not due:
            return
        self._last_load = load
        self._load_due = now + _LOAD_INTERVAL
        for connection in list(self._connections.alive):
            self._connections.send(connection, load)

    def _greet(self, connection: Connection) -> None:
        self._connections.send(connection, self._hello)
        self._connections.send(connection, self._load(time.monotonic()))

    def _report_progress(self, stage: str, done: int, total: int) -> None:
        """Tell those who wait; what they send meanwhile stays in their sockets until `run`."""
        self._check_parent()
        progress = Progress(stage, done, total)
        self._connections.accept_waiting()
        for connection in list(self._connections.alive):
            self._connections.send(connection, progress)

    def _make_hello(self) -> Hello:
        engine = self._engine
        return Hello(
            protocol=PROTOCOL,
            model=engine.name,
            folder=str(engine.folder),
            pid=os.getpid(),
            device=engine.device,
            dtype=engine.dtype,
            max_model_len=engine.max_model_len,
            vocab_size=engine.config.vocab_size,
            block_size=engine.block_size,
            kv_tokens=engine.kv_tokens,
            max_running=engine.scheduler.config.max_running,
            eos_token_ids=engine.config.eos_token_ids,
            defaults=dict(engine.config.defaults),
            kv_events=self._events.endpoint if self._events else "",
            kv_replay=self._events.replay_endpoint if self._events else "",
            capabilities=("blocks", "grammar") if engine.grammars else ("blocks",),
            embedding_size=engine.config.hidden_size,
            heartbeat=EVERY,
        )

    def _check_parent(self) -> None:
        parent = self._options.parent_pid
        if parent is not None and os.getppid() != parent:
            raise _ParentGone(f"the parent process {parent} has gone")

    def _close(self) -> None:
        self._heartbeat.close()
        self._connections.close()
        self._compiling.close()
        if self._events:
            self._events.close()


def _output(request: int, made: Drawn) -> Output:
    """What a token that was drawn brings its request."""
    job, token, logprob, entropy, low_margin, top = made
    first = len(job.tokens) == job.given + 1
    if not first and top is None:
        return Output(request, [token], [logprob], [entropy], job.finish, low_margins=low_margin)
    return Output(
        request,
        [token],
        [logprob],
        [entropy],
        job.finish,
        cached=job.cached if first else 0,
        queued=_queued(job) if first else 0.0,
        top_tokens=[top.tokens] if top else [],
        top_logprobs=[top.logprobs] if top else [],
        prompt=job.scorer.result() if first and job.scorer else None,
        low_margins=low_margin,
        sketch=job.sketch if first else b"",
    )


def _embedding(request: int, job: Job) -> Output:
    assert job.pooler is not None
    return Output(request, [], [], [], "stop", job.cached, _queued(job), embedding=job.pooler.result())


def _queued(job: Job) -> float:
    """Seconds from a job's arrival to its first step."""
    return 0.0 if job.first_scheduled is None else max(0.0, job.first_scheduled - job.arrival)


def run_worker(options: WorkerOptions) -> int:
    """Run a worker until it is drained; returns the process's exit status.

    SIGTERM drains. SIGINT does too, unless a parent process was named: a terminal sends ctrl-C to the whole group, and
    then the parent decides.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="worker: %(message)s")
    try:
        worker = Worker(options)
    except _ParentGone:
        return 1
    except (ModelFault, OSError, ValueError, MemoryError) as error:
        print(f"penstock: error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        said = str(error).partition("\n")[0]
        print(f"penstock: error: the GPU's memory is too small, or others use it: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130

    def on_signal(number: int, stack: FrameType | None) -> None:
        worker.drain()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN if options.parent_pid else on_signal)
    try:
        worker.run()
    except RuntimeError as error:
        if not is_device_error(error):
            raise
        # Nothing on the GPU can be trusted any more: the supervisor starts another worker, and says why.
        said = str(error).partition("\n")[0]
        print(f"penstock: error: the GPU failed: {said}", file=sys.stderr)
        return 1
    return 0


def is_device_error(error: RuntimeError) -> bool:
    """Whether the GPU or its memory has failed, so that this process can't go on."""
    return isinstance(error, torch.AcceleratorError | torch.OutOfMemoryError) or "CUDA error" in str(error)
