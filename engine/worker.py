"""What does a worker process do from its start to its end?

It listens at once, tells whoever connects how the loading goes, says `Hello` when it can answer, and then repeats: take
what gateways sent, run one engine step, send each gateway one frame with all that the step brought it. One thread does
everything, so nothing here needs a lock, and an abort frees its blocks before the next step is planned.
"""

import gc
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

import numpy as np

from engine.config import ModelFault
from engine.connections import Connection, Connections
from engine.engine import Engine, Outcome
from engine.events import KvEventPublisher
from engine.link import (
    PROTOCOL,
    Abort,
    Drain,
    Failed,
    FailureCode,
    Hello,
    Load,
    Output,
    Progress,
    Step,
    Submit,
)
from engine.options import WorkerOptions
from engine.runner import Job

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
        self._next_uid = 0
        self._last_load: Load | None = None
        self._load_due = 0.0
        self._connections = Connections(options.listen)
        self._events: KvEventPublisher | None = None
        try:
            if options.kv_events:
                self._events = KvEventPublisher(options.kv_events, options.kv_replay)
            self._engine = build(options, self._report_progress)
        except BaseException:
            self._close()
            raise
        self._hello = self._make_hello()
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
            while not (self._draining and not self._owners):
                self._check_parent()
                self._take_messages()
                outcome = self._engine.step()
                if outcome is not None:
                    self._publish(outcome)
                self._report_load()
                if self._events:
                    self._events.publish(self._engine.take_events())
                    self._events.serve_replays()
        except _ParentGone as gone:
            log.warning("%s: stopping", gone)
        finally:
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
                case Drain():
                    self.drain()
        for connection in self._connections.arrived:
            self._greet(connection)
        self._connections.arrived.clear()
        for connection in self._connections.closed:
            for uid in connection.uids.values():
                self._engine.abort(uid)
                del self._owners[uid]
            connection.uids.clear()
        self._connections.closed.clear()

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
        job = self._make_job(message)
        try:
            self._engine.add(job)
        except ValueError as error:
            self._connections.send(connection, Failed(message.id, "invalid_request", str(error)))
            return
        self._owners[job.uid] = (connection, message.id)
        connection.uids[message.id] = job.uid

    def _make_job(self, message: Submit) -> Job:
        sampling, slo = message.sampling, message.slo
        self._next_uid += 1
        return Job(
            uid=self._next_uid,
            tokens=np.frombuffer(message.tokens, dtype="<i4").tolist(),
            sampling=sampling,
            seed=random.getrandbits(63) if sampling.seed is None else sampling.seed,
            max_tokens=sampling.max_tokens,
            max_len=self._engine.max_model_len,
            stop_ids=self._engine.stop_ids(sampling),
            min_tokens=sampling.min_tokens,
            arrival=time.monotonic() - message.age,
            ttft=slo.ttft if slo else self._options.ttft,
            tpot=slo.tpot if slo else self._options.tpot,
            tenant=message.tenant,
            priority=message.priority,
            salt=message.salt,
            adapter=message.adapter,
        )

    def _fault(self, connection: Connection, message: Submit) -> tuple[FailureCode, str] | None:
        """Why this request can't be taken, or None."""
        if self._draining:
            return "draining", "the worker is shutting down"
        if message.id in connection.uids:
            return "invalid_request", f"request {message.id} is running already"
        if message.adapter:
            return "invalid_request", f"this worker has no adapter {message.adapter!r}"
        count, rest = divmod(len(message.tokens), 4)
        if rest or not count:
            return "invalid_request", f"a prompt of {len(message.tokens)} bytes is no list of int32 token ids"
        limit = self._engine.max_model_len
        if count >= limit:
            return (
                "context_length_exceeded",
                f"the prompt has {count} tokens, but prompt and answer may have {limit}",
            )
        tokens = np.frombuffer(message.tokens, dtype="<i4")
        low, high, vocab = int(tokens.min()), int(tokens.max()), self._engine.config.vocab_size
        if low < 0 or high >= vocab:
            bad = low if low < 0 else high
            return "invalid_request", f"token id {bad} is outside the vocabulary of {vocab}"
        if message.sampling.max_tokens < 1:
            return "invalid_request", f"max_tokens must be at least 1, not {message.sampling.max_tokens}"
        return None

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
        for job, token, logprob, entropy in outcome.drawn:
            owner = owners.get(job.uid)
            if owner is None:
                continue
            connection, request = owner
            if job.generated == 1:
                first = job.arrival if job.first_scheduled is None else job.first_scheduled
                output = Output(
                    request,
                    [token],
                    [logprob],
                    [entropy],
                    job.finish,
                    job.cached,
                    max(0.0, first - job.arrival),
                )
            else:
                output = Output(request, [token], [logprob], [entropy], job.finish)
            frames.setdefault(connection, []).append(output)
            if job.finish is not None:
                del owners[job.uid], connection.uids[request]
        for connection, outputs in frames.items():
            self._connections.send(connection, Step(outputs, outcome.seconds))

    def _load_is_news(self) -> bool:
        return bool(self._connections.alive) and self._engine.load(time.monotonic()) != self._last_load

    def _report_load(self) -> None:
        now = time.monotonic()
        if now < self._load_due:
            return
        load = self._engine.load(now)
        if load == self._last_load:
            return
        self._last_load = load
        self._load_due = now + _LOAD_INTERVAL
        for connection in list(self._connections.alive):
            self._connections.send(connection, load)

    def _greet(self, connection: Connection) -> None:
        self._connections.send(connection, self._hello)
        self._connections.send(connection, self._engine.load(time.monotonic()))

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
            max_running=self._options.max_running,
            eos_token_ids=engine.config.eos_token_ids,
            defaults=dict(engine.config.defaults),
            kv_events=self._events.endpoint if self._events else "",
            kv_replay=self._events.replay_endpoint if self._events else "",
        )

    def _check_parent(self) -> None:
        parent = self._options.parent_pid
        if parent is not None and os.getppid() != parent:
            raise _ParentGone(f"the parent process {parent} has gone")

    def _close(self) -> None:
        self._connections.close()
        if self._events:
            self._events.close()


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
    except KeyboardInterrupt:
        return 130

    def on_signal(number: int, stack: FrameType | None) -> None:
        worker.drain()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN if options.parent_pid else on_signal)
    worker.run()
    return 0
