"""What does a worker process do whose engine is vLLM?

The same as `engine.worker`, seen from the link: it listens at once, tells how the start goes, says `Hello`, takes
requests, and sends each gateway one `Step` for all that a step brought it. Within, it is an event loop: vLLM's engine
steps in a process of its own, and what it brings wakes one task for each request.
"""

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from engine.checks import Fault, fault_of
from engine.config import ModelFault
from engine.connections import Connection, Connections, listen
from engine.events import KvEventPublisher, changes_of, packed
from engine.link import (
    PROTOCOL,
    Abort,
    Blocks,
    Drain,
    Failed,
    FailureCode,
    Follow,
    Hello,
    Load,
    LoadAdapter,
    Output,
    Progress,
    Step,
    Submit,
    ToGateway,
)
from engine.options import WorkerOptions
from engine.vllm.events import EventSource
from engine.vllm.load import Meter, Tally
from engine.vllm.outputs import output_of
from engine.vllm.sampling import sampling_params
from engine.vllm.start import Vllm, build, prepare_environment, warm_up

_TICK: Final = 0.05
_BEAT: Final = 0.25
_PROGRESS: Final = 0.25
# Nothing for so long, with requests at hand: vLLM's engine hangs, and this worker is better started anew.
_STUCK: Final = 300.0
_SHUTDOWN: Final = 0.5
_BEHIND_ALL: Final = 2**31  # background work, in vLLM's order: the smallest number goes first

log = logging.getLogger(__name__)


class EngineGone(Exception):
    """vLLM's engine has died or hangs; nothing that was submitted will be answered."""


class _ParentGone(Exception):
    """The process that started this worker has gone; nobody is left to answer to."""


@dataclass(slots=True)
class _Request:
    uid: int
    connection: Connection
    message: Submit
    task: "asyncio.Task[None] | None" = None

    @property
    def name(self) -> str:
        """What vLLM knows it by."""
        return str(self.uid)


@dataclass(slots=True)
class _StatLogger:
    """What vLLM wants of somebody who listens to its statistics."""

    record: Callable[..., None]

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None: ...


@dataclass(slots=True)
class _Frames:
    """What one step has brought so far, by connection."""

    outputs: dict[Connection, list[Output]] = field(default_factory=dict)
    due: bool = False


class VllmWorker:
    """One vLLM and the gateways connected to it. Belongs to one event loop.

    Args:
        options: how it was started.
        connections: where gateways come in.
        folder: a private one, for the socket of vLLM's KV events.
    """

    def __init__(self, options: WorkerOptions, connections: Connections, folder: Path) -> None:
        self._options = options
        self._connections = connections
        self._endpoint = f"ipc://{folder}/kv-events"
        self._meter = Meter(kv_total=0, tpot=options.tpot)
        self._requests: dict[int, _Request] = {}
        self._adapters: dict[str, Any] = {}
        self._followers: set[Connection] = set()
        self._frames = _Frames()
        self._next_uid = 0
        self._draining = self._closed = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_load: Load | None = None
        self._load_sent = 0.0
        self._heard = time.monotonic()
        self._stage = "starting"
        self._tasks: set[asyncio.Task[None]] = set()
        self._publisher = KvEventPublisher(options.kv_events, options.kv_replay) if options.kv_events else None
        self._source = EventSource(self._endpoint)
        self._vllm: Vllm | None = None
        self._hello: Hello | None = None

    async def run(self) -> None:
        """Start vLLM and serve until drained.

        Raises:
            ModelFault, ValueError, RuntimeError: it can't be started.
            EngineGone: it has died.
        """
        loop = asyncio.get_running_loop()
        self._vllm = await self._start()
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        if not self._options.parent_pid:
            loop.add_signal_handler(signal.SIGINT, self.drain)
        self._meter.kv_total = self._vllm.kv_tokens
        self._hello = self._make_hello(self._vllm)
        for connection in self._connections.alive:
            self._greet(connection)
        self._connections.arrived.clear()
        for descriptor, take in (
            (self._connections.fileno(), self._take_messages),
            (self._source.descriptor, self._tell_events),
        ):
            loop.add_reader(descriptor, take)
        ticking = asyncio.create_task(self._tick())
        try:
            await asyncio.wait({ticking, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            for finished in (ticking, self._ended):
                if finished.done():
                    finished.result()
            self._flush()
        finally:
            ticking.cancel()
            loop.remove_reader(self._connections.fileno())
            loop.remove_reader(self._source.descriptor)

    def drain(self) -> None:
        """Refuse new requests, finish those at hand, then let `run` return."""
        self._draining = self._meter.draining = True
        self._end_if_drained()

    def close(self) -> None:
        """Let go of everybody, so that whoever waits for what won't come learns it now; then stop vLLM."""
        self._closed = True
        self._connections.close()
        self._source.close()
        if self._publisher:
            self._publisher.close()
        if self._vllm is not None:
            self._vllm.llm.shutdown(timeout=_SHUTDOWN)

    async def _start(self) -> Vllm:
        """Start vLLM in a thread, and tell those who wait how it goes."""

        def at(stage: str) -> None:
            self._stage = stage

        async def whole() -> Vllm:
            made = await asyncio.to_thread(build, self._options, self._endpoint, _StatLogger(self._record), at)
            at("warming up")
            await warm_up(made)
            return made

        starting = asyncio.create_task(whole())
        while not (await asyncio.wait({starting}, timeout=_PROGRESS))[0]:
            if self._is_orphan():
                os._exit(1)  # nothing else ends a thread that starts vLLM
            self._connections.accept_waiting()
            for connection in list(self._connections.alive):
                self._connections.send(connection, Progress(self._stage))
        return starting.result()

    def _take_messages(self) -> None:
        for connection, message in self._connections.poll(0):
            match message:
                case Submit():
                    self._submit(connection, message)
                case Abort():
                    for number in message.ids:
                        self._abort(connection, number)
                case LoadAdapter():
                    self._start_task(self._load_adapter(connection, message))
                case Follow():
                    self._follow(connection)
                case Drain():
                    self.drain()
        for connection in self._connections.arrived:
            self._greet(connection)
        self._connections.arrived.clear()
        for connection in self._connections.closed:
            for number in list(connection.uids):
                self._abort(connection, number)
            self._followers.discard(connection)
        self._connections.closed.clear()

    def _submit(self, connection: Connection, message: Submit) -> None:
        fault = self._fault(connection, message)
        if fault is not None:
            self._connections.send(connection, Failed(message.id, *fault))
            return
        self._next_uid += 1
        request = _Request(self._next_uid, connection, message)
        self._requests[request.uid] = request
        connection.uids[message.id] = request.uid
        self._meter.begin(request.uid, Tally(len(message.tokens) // 4, message.background))
        if len(self._requests) == 1:
            self._heard = time.monotonic()
        request.task = self._start_task(self._answer(request))

    def _fault(self, connection: Connection, message: Submit) -> Fault | None:
        """Why this request can't be taken, or None."""
        assert self._vllm is not None
        if self._draining:
            return "draining", "the worker is shutting down"
        if message.id in connection.uids:
            return "invalid_request", f"request {message.id} is running already"
        if message.embed:
            return "invalid_request", "a worker with --engine vllm makes no embeddings; --engine native does"
        if message.adapter and message.adapter not in self._adapters:
            return "invalid_request", f"this worker has no adapter {message.adapter!r}"
        if message.sampling.grammar and not self._vllm.grammars:
            return (
                "invalid_request",
                "grammars need a tokenizer.json and an end-of-sequence token; this model lacks them",
            )
        return fault_of(message, vocab_size=self._vllm.vocab_size, max_model_len=self._vllm.max_model_len)

    async def _answer(self, request: _Request) -> None:
        """Have vLLM answer a request, and pass on what it draws."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        assert self._vllm is not None
        try:
            await self._pass_on(request, self._vllm)
        except asyncio.CancelledError:
            if not self._ended.done():
                await self._vllm.llm.abort(request.name)
        except EngineDeadError:
            self._fail_all("vLLM's engine has died; its own messages stand above")
        except (VLLMClientError, ValueError) as error:
            self._fail(request, "invalid_request", str(error))
        except Exception as error:
            log.exception("request %d", request.message.id)
            self._fail(request, "internal", f"vLLM: {error}")
        finally:
            self._forget(request)

    async def _pass_on(self, request: _Request, vllm: Vllm) -> None:
        from vllm.inputs.engine import tokens_input

        message = request.message
        tokens: list[int] = np.frombuffer(message.tokens, dtype="<i4").tolist()
        answered = tokens[len(tokens) - message.answered :]
        params = sampling_params(message.sampling, answered, vllm.eos_token_ids, vllm.vocab_size)
        params.max_tokens = min(params.max_tokens, vllm.max_model_len - len(tokens))
        params.min_tokens = min(params.min_tokens, params.max_tokens)
        queue = await vllm.llm.add_request(
            request.name,
            tokens_input(tokens, cache_salt=message.salt or None),
            params,
            arrival_time=time.time() - message.age,
            lora_request=self._adapters.get(message.adapter),
            priority=_BEHIND_ALL if message.background else -message.priority,
        )
        first = True
        while True:
            made = queue.get_nowait() or await queue.get()
            output = output_of(message.id, made, top=message.sampling.top_logprobs, first=first)
            self._meter.drew(request.uid, len(output.tokens), output.cached)
            first = False
            if output.finish is not None:
                self._forget(request)
            self._deliver(request.connection, output)
            if output.finish is not None:
                return

    def _deliver(self, connection: Connection, output: Output) -> None:
        """Put an output with the others of its step: they leave together, once each request's task has had its turn."""
        self._frames.outputs.setdefault(connection, []).append(output)
        if not self._frames.due:
            self._frames.due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self._closed:
            return
        frames, self._frames = self._frames, _Frames()
        for connection, outputs in frames.outputs.items():
            self._connections.send(connection, Step(outputs, self._meter.seconds))
        self._tell_events()
        self._end_if_drained()

    def _abort(self, connection: Connection, number: int) -> None:
        uid = connection.uids.get(number)
        if uid is not None:
            request = self._requests[uid]
            self._forget(request)
            if request.task is not None:
                request.task.cancel()
            waiting = self._frames.outputs.get(connection)
            if waiting:  # an aborted request is never heard of again
                waiting[:] = [output for output in waiting if output.id != number]

    def _forget(self, request: _Request) -> None:
        """A request has ended, however it did."""
        if self._requests.pop(request.uid, None) is not None:
            del request.connection.uids[request.message.id]
            self._meter.end(request.uid)
            self._end_if_drained()

    def _fail(self, request: _Request, code: FailureCode, why: str) -> None:
        if request.uid in self._requests:
            self._forget(request)
            self._connections.send(request.connection, Failed(request.message.id, code, why))

    def _fail_all(self, why: str) -> None:
        """Give up: gateways see their connection break, and place what ran here elsewhere."""
        if not self._ended.done():
            self._ended.set_exception(EngineGone(why))

    async def _load_adapter(self, connection: Connection, message: LoadAdapter) -> None:
        """Load a LoRA adapter; it has an end like a request's."""
        from vllm.lora.request import LoRARequest

        assert self._vllm is not None
        fault = f"{message.folder} is no folder" if not Path(message.folder).is_dir() else ""
        if not self._options.adapters:
            fault = "this worker was started without --adapters"
        known = self._adapters.get(message.name)
        if not fault and known is None:
            adapter = LoRARequest(message.name, len(self._adapters) + 1, message.folder)
            try:
                await self._vllm.llm.add_lora(adapter)
                self._adapters[message.name] = adapter
            except Exception as error:
                fault = f"vLLM can't load the adapter {message.name!r}: {error}"
        elif not fault and known is not None and known.lora_path != message.folder:
            fault = f"an adapter {message.name!r} was loaded from {known.lora_path} already"
        answer: ToGateway = (
            Failed(message.id, "invalid_request", fault) if fault else Step([Output(message.id, [], [], [], "stop")])
        )
        self._connections.send(connection, answer)

    def _start_task(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _record(self, *stats: Any, **more: Any) -> None:
        self._heard = time.monotonic()
        self._meter.record(*stats, **more)

    def _tell_events(self) -> None:
        events = self._source.take()
        if events and self._followers:
            changes = changes_of(events)
            for connection in self._followers:
                self._connections.send(connection, changes)
        if self._publisher:
            self._publisher.publish(events)
            self._publisher.serve_replays()

    def _follow(self, connection: Connection) -> None:
        self._tell_events()
        self._followers.add(connection)
        self._connections.send(connection, Blocks(True, stored=packed(self._source.cached())))

    async def _tick(self) -> None:
        """What is done every so often, whatever happens."""
        assert self._vllm is not None
        while True:
            if self._is_orphan():
                raise _ParentGone(f"the parent process {self._options.parent_pid} has gone")
            self._take_messages()  # nobody comes, but a stranger's time may be up
            self._tell_events()
            self._report_load()
            if self._vllm.llm.errored:
                raise EngineGone("vLLM's engine has died; its own messages stand above")
            if self._requests and time.monotonic() - self._heard > _STUCK:
                raise EngineGone(f"vLLM's engine has brought nothing for {_STUCK:g} s")
            await asyncio.sleep(_TICK)

    def _report_load(self) -> None:
        now = time.monotonic()
        load = self._meter.load()
        if load == self._last_load and now - self._load_sent < _BEAT:
            return
        self._last_load, self._load_sent = load, now
        for connection in list(self._connections.alive):
            self._connections.send(connection, load)

    def _greet(self, connection: Connection) -> None:
        assert self._hello is not None
        self._connections.send(connection, self._hello)
        self._connections.send(connection, self._meter.load())

    def _make_hello(self, vllm: Vllm) -> Hello:
        options, publisher = self._options, self._publisher
        return Hello(
            protocol=PROTOCOL,
            model=options.name or _name_of(options.model),
            folder=str(vllm.folder),
            pid=os.getpid(),
            device=vllm.device,
            dtype=vllm.dtype,
            max_model_len=vllm.max_model_len,
            vocab_size=vllm.vocab_size,
            block_size=vllm.block_size,
            kv_tokens=vllm.kv_tokens,
            max_running=vllm.max_running,
            engine="vllm",
            eos_token_ids=vllm.eos_token_ids,
            defaults=vllm.defaults,
            kv_events=publisher.endpoint if publisher else "",
            kv_replay=publisher.replay_endpoint if publisher else "",
            heartbeat=_BEAT,
            capabilities=(
                "blocks",
                *(["grammar"] if vllm.grammars else ()),
                *(["adapters"] if options.adapters else ()),
            ),
        )

    def _end_if_drained(self) -> None:
        if self._draining and not self._requests and not self._frames.due and not self._ended.done():
            self._ended.set_result(None)

    def _is_orphan(self) -> bool:
        parent = self._options.parent_pid
        return parent is not None and os.getppid() != parent


def run_worker(options: WorkerOptions) -> int:
    """Run a worker until it is drained; returns the process's exit status. Signals mean what `engine.worker` says."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="worker: %(message)s")
    # While vLLM starts, there is nothing to finish, and its processes end with ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN if options.parent_pid else signal.SIG_DFL)
    prepare_environment(options)
    try:
        asyncio.run(_serve(options))
    except _ParentGone as gone:
        log.warning("%s: stopping", gone)
    except (EngineGone, ModelFault, ImportError, OSError, ValueError, RuntimeError, MemoryError) as error:
        print(f"penstock: error: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(options: WorkerOptions) -> None:
    connections = listen(options)
    with tempfile.TemporaryDirectory(prefix="penstock-vllm-") as folder:
        worker = VllmWorker(options, connections, Path(folder))
        try:
            await worker.run()
        finally:
            worker.close()


def _name_of(model: str | None) -> str:
    if model is None:
        from engine.demo import NAME

        return NAME
    return Path(model).resolve().name if Path(model).is_dir() else model
