"""What becomes of one request that passes through, from its last byte to its answer's?

It is sent to a target and, until the first byte of an answer has come, to another one if that fails or (hedging) takes
unusually long. Whoever answers first has it; the others' connections are closed at once. From then on the bytes of a
stream go to the client as they come. Answers that are no streams are kept until they are complete, as long as they are
small: until then they can still be had from somebody else.

A stream that breaks goes on elsewhere where `gateway.lane.continuation` can have that.

Nothing here waits: everything happens in what the two connections call.
"""

import logging
from asyncio import Task, TimerHandle
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol

from gateway.careful import careful
from gateway.fleet.upstream.connection import Connection, Fault, Receiver
from gateway.fleet.upstream.target import Target
from gateway.lane import endpoints, heads
from gateway.lane.answer_so_far import AnswerSoFar
from gateway.lane.continuation import Continuation, Remembering, cut_off
from gateway.lane.holding import Holding
from gateway.lane.meter import Meter, estimated_prompt, longest_answer
from gateway.lane.placing import NO_PROMPT, Prompt
from gateway.lane.precise import Precise
from gateway.lane.prompt_tokens import Reader
from gateway.lane.scan import NO_TALLY, Skimmed, Tally, renamed, skim, tally, tally_whole
from gateway.lane.stream import Seen, Stream
from gateway.record.delivery import Delivery
from gateway.record.recorder import Recorder
from gateway.record.recording import Recording
from gateway.telemetry.lines import about
from gateway.telemetry.metrics import ModelMetrics, Outcome, outcome_of
from gateway.traffic.keys import ANYBODY, Key
from gateway.traffic.limits.limit import Account
from gateway.traffic.limits.limiter import Counted, Entry, Tab
from gateway.wire import errors

if TYPE_CHECKING:
    from gateway.lane.lane import Lane
    from gateway.lane.lanes import Lanes

CLIENT_GONE: Final = 499  # nginx's status for it, in metrics only
_OVERLOADED: Final = frozenset({429, 502, 503, 504})
"""Another target may do better. Not 500: what brings one server down should not be shown to all of them."""
_KEPT: Final = 1 << 20  # bytes of an answer that is no stream; a longer one goes on as it comes
_RETRY_AFTER: Final = 1.0  # seconds; what clients are told when nobody could answer

log = logging.getLogger(__name__)


class Client(Protocol):
    """The connection that a request came on."""

    def write(self, data: bytes) -> None: ...
    def done(self, close: bool) -> None:
        """The answer is complete; ``close``: nothing else may follow on this connection."""

    def abort(self) -> None:
        """Break the connection off: the answer can't be completed, and the client must see that."""


class Exchange:
    """One request, with this ``head``. ``size`` is that of the body so far; it is counted under ``label``."""

    __slots__ = (
        "_attempts", "_belief", "_body", "_client", "_delivery", "_forwarded", "_hedge", "_held", "_keep_alive",
        "_kept", "_lane", "_lanes", "_meter", "_queued", "_reading", "_received", "_recording", "_rest",
        "_retries", "_skimmed", "_so_far", "_stream", "_timer", "_trace", "_tried", "_winner", "counters", "endpoint",
        "head", "label", "model", "prompt", "request_id", "size",
    )  # fmt: skip

    variant = heads.DEFAULT
    """What the answer says of who made it."""
    unseen = False
    """Whether it is none of a client's: then it is counted nowhere."""
    background = False
    """Whether nobody waits for it: then it takes no place from those who wait."""
    inner = False
    """Whether it is part of another request, which is counted and on the record."""

    def __init__(self, lanes: "Lanes", client: Client, head: heads.RequestHead) -> None:
        self._lanes = lanes
        self._lane: Lane  # once it is admitted
        self._client = client
        self.head = head
        self.endpoint = head.endpoint
        self.model = self.label = ""
        self.counters: ModelMetrics | None = None
        self.request_id = head.request_id or lanes.new_id()
        self._keep_alive = head.keep_alive
        self._body = b""
        self._rest: list[bytes] | None = None
        self._skimmed: Skimmed | None = None
        self.size = 0
        self._forwarded = head.lines
        self._trace = head.trace
        self.prompt: Prompt = NO_PROMPT
        self._received = 0.0
        self._attempts: list[Connection] = []
        self._tried: list[Target] = []
        self._winner: Connection | None = None
        self._stream: Stream | None = None
        self._so_far: AnswerSoFar | None = None
        self._reading: Task[None] | None = None
        self._held: Holding | None = None
        self._belief: tuple[Target, int] | None = None  # so many prompt tokens, the target has cached
        self._kept: list[bytes] | None = None
        self._retries = 0
        self._queued = False
        self._timer: TimerHandle | None = None
        self._hedge: Connection | None = None
        self._meter: Meter | None = None
        self._recording: Recording | None = None
        self._delivery: Delivery | None = None

    # What the client's connection calls

    def take(self, part: bytes) -> bool:
        """More of the body. False: it is too much, and `refuse` should follow."""
        self.size += len(part)
        if not self._body:
            self._body = part
        elif self._rest is None:
            self._rest = [part]
        else:
            self._rest.append(part)
        return self.size <= self._lanes.context.max_body

    @property
    def body(self) -> bytes:
        """All of the body that has come."""
        if self._rest is not None:
            self._body = b"".join((self._body, *self._rest))
            self._rest = None
        return self._body

    @property
    def about(self) -> dict[str, str]:
        """Which request it is, for a log line's ``extra``."""
        return about(self.request_id.decode(), self._recording.trace.trace_id if self._recording is not None else "")

    @property
    def lane(self) -> "Lane | None":
        """The way that it takes, once it is admitted."""
        return getattr(self, "_lane", None)

    @property
    def target(self) -> Target | None:
        """Who answers, or was asked last; None before anybody is."""
        return self._winner.target if self._winner is not None else self._tried[-1] if self._tried else None

    @property
    def attempts(self) -> int:
        """How many targets it was sent to."""
        return len(self._tried)

    def asks_for(self) -> str:
        """The model, once the body is complete; empty where it can't be told."""
        try:
            self._skimmed = skim(self.body)
        except errors.ApiError:
            return ""
        return self._skimmed.model

    def start(self) -> None:
        """The body is complete, and it is this request's turn."""
        self._received = perf_counter()
        self._lanes.began(self)
        try:
            self._admit()
        except errors.ApiError as error:
            self._fail(error)
        except Exception:
            self.crashed()

    def refuse(self, error: errors.ApiError) -> None:
        """Answer with an error, whether the body is complete or not."""
        self._body, self._rest = b"", None
        self._received = perf_counter()
        self._lanes.began(self)
        self._fail(error)

    def abandon(self) -> None:
        """The client has left."""
        if self._delivery is not None:
            self._delivery.leave()
            if not self._lanes.runs(self):
                return  # all was done, and had only to be recorded
        self._close_attempts()
        if not self.inner:
            self._lanes.context.metrics.disconnects.inc()
        self._end(CLIENT_GONE, "disconnected")

    def close_after(self) -> None:
        """Let nothing follow this answer on the client's connection."""
        self._keep_alive = False
        if self._delivery is not None:
            self._delivery.close_after()

    def pause(self, paused: bool) -> None:
        """The client doesn't read as fast as the answer comes, or does again."""
        if self._winner is not None:
            self._winner.pause(paused)

    # What the lane calls

    def record(self, recorder: Recorder) -> None:
        """Have it on the record; where that is a log, before the last of its answer goes out."""
        self._recording = recording = Recording(
            recorder, self.request_id.decode(), self.endpoint, self.head.carried, self.head.session
        )
        if recorder.log is not None:
            self._client = self._delivery = Delivery(self._client)
        if recorder.telemetry is not None:
            self._trace = recording.trace.lines

    def interrupt(self, error: errors.ApiError) -> None:
        """End it now, with an error."""
        self._close_attempts()
        self._break(error)

    def crashed(self) -> None:
        """A fault of ours, the exception at hand, ends it."""
        log.exception("request=%s path=%s status=500", self.request_id.decode(), self.endpoint, extra=self.about)
        self.interrupt(errors.internal_error())

    def expire(self, now: float) -> None:
        """Give up attempts that have been silent for too long, and a client that hasn't read for as long."""
        for connection in list(self._attempts):
            options = connection.target.options
            limit = options.idle if connection.heard else options.first_byte
            if now - connection.last > limit:
                if connection.paused:
                    self._client.abort()
                    self.abandon()
                    return
                what = "it fell silent in the middle of its answer" if connection.heard else "it did not answer"
                connection.expire(Fault("timeout", f"{what}, for {limit:g} s"))

    # The request

    def _admit(self) -> None:
        """Check the request, and send it off.

        Raises:
            ApiError: it can't be answered.
        """
        lanes = self._lanes
        context = lanes.context
        if context.draining and not self.inner:
            raise errors.shutting_down()
        key = self._key()
        skimmed = self._skimmed = self._skimmed or skim(self.body)
        self.model = model = skimmed.model
        if self._recording is not None:
            self._recording.asked(self.body, key.id, skimmed)
        key.allow(model)
        ready = self._find_lane(key)
        if not self.background:
            self._lane.check_room()
        if ready[0].models:
            self.label = model
        if not self.unseen:
            self.counters = context.metrics.model(self.endpoint, self.label)
        if key is ANYBODY or not (accounts := key.accounts(model)):
            self._queue(skimmed, ready)
        else:
            self._enter(key, accounts, skimmed)

    def _key(self) -> Key:
        """Whose request it is.

        Raises:
            ApiError: 401, nobody's.
        """
        return self._lanes.context.keys.check(self.head.authorization)

    def _find_lane(self, key: Key) -> list[Target]:
        """Take the lane that the model's name leads to; returns the targets that may answer, at least one.

        Raises:
            ApiError: there is no lane for it, or no target that can be reached.
        """
        self._take_lane(self._lanes.route(self.model), self.body)
        return self._lane.ready(self.model, self._received)

    def _take_lane(self, lane: "Lane", body: bytes) -> None:
        """Go this way from now on, with this ``body``."""
        self._lane = lane
        if lane.passes_keys and not self._lanes.context.keys:
            self._forwarded = self.head.lines + self.head.key
        self.label = self.model if lane.named else ""  # names that clients make up are no labels
        self._body = body if lane.model is None else renamed(body, lane.model)

    def _enter(self, key: Key, accounts: tuple[Account, ...], skimmed: Skimmed) -> None:
        """Have the request let in by its key's limits before it goes on."""
        prompt, answer = estimated_prompt(skimmed), longest_answer(self.endpoint, self._body)

        def entered(entry: Entry) -> None:
            if not self._lanes.runs(self):  # its client has left meanwhile
                if isinstance(entry, Counted):
                    entry.settle(0)
                return
            if isinstance(entry, errors.ApiError):
                self._fail(entry)
                return
            self._let_in(entry, skimmed, prompt, answer)

        entry = self._lanes.context.limits.let_in(key, accounts, prompt + answer, entered)
        if entry is not None:
            entered(entry)

    def _let_in(self, entry: Tab | Counted, skimmed: Skimmed, prompt: int, answer: int) -> None:
        """Go on with what the request has of its key's limits; it may use so many tokens."""
        self._client = self._meter = Meter(self._client, entry, prompt, 0 if skimmed.stream else answer)
        try:
            ready = self._lane.ready(self.model, perf_counter())
            if not self.background:
                self._lane.check_room()
            self._queue(skimmed, ready)
        except errors.ApiError as error:
            self._fail(error)
        except Exception:
            self.crashed()

    def _queue(self, skimmed: Skimmed, ready: list[Target]) -> None:
        """Find out what placement wants to know of the request, and place it."""
        lanes, lane = self._lanes, self._lane
        lane.arrived()
        if self._recording is not None:
            self._recording.begin(self.label)
        self._queued = not self.background
        lanes.context.queued += self._queued
        self.prompt = prompt = lane.prompt(skimmed)
        if lane.targets.continuing and skimmed.stream:
            self._so_far = AnswerSoFar(self.endpoint, self._body)
        if lane.reader is not None and prompt.size:
            self._reading = lanes.loop.create_task(self._read(lane.reader, bool(skimmed.stream)))
        else:
            self._place(ready, bool(skimmed.stream), self._received)

    def _place(self, ready: list[Target], stream: bool, now: float) -> None:
        lane = self._lane
        target = lane.placing.choose(ready, self.prompt, now)
        if lane.holding is not None and lane.holding.holds(self, target, ready, stream, now):
            self._held = lane.holding
            self._lanes.context.metrics.held.labels(self.label).inc()
        else:
            self._send_first(target, stream)

    def _send_first(self, target: Target, stream: bool) -> None:
        lane = self._lane
        self._send(target)
        if lane.hedging and (delay := lane.hedge_delay(stream)) is not None:
            self._timer = self._lanes.loop.call_later(delay, self._send_hedge)

    def send_held(self, target: Target, stream: bool) -> None:
        """It has waited in the gateway, and is sent now."""
        self._release()
        self._send_first(target, stream)

    def refuse_held(self, now: float) -> None:
        """It has waited in the gateway for too long, or there is nobody left to wait for."""
        self._release()
        try:
            self._lane.ready(self.model, now)
            self._fail(errors.overloaded(_RETRY_AFTER))
        except errors.ApiError as error:
            self._fail(error)

    def _release(self) -> None:
        self._held = None
        self._lanes.context.metrics.held.labels(self.label).dec()

    async def _read(self, reader: Reader, stream: bool) -> None:
        """Find the prompt's tokens out before it is placed."""
        lane = self._lane
        try:
            read = await reader.read(self.endpoint, self._body)
            self._reading = None
            if read is not None and isinstance(lane.placing, Precise):
                self.prompt = lane.placing.with_tokens(self.prompt, *read)
            now = perf_counter()
            self._place(lane.ready(self.model, now), stream, now)
        except errors.ApiError as error:
            self._fail(error)
        except Exception:
            self._reading = None
            self.crashed()

    # Attempts

    def _send(self, target: Target) -> None:
        """Send the request to where it was placed."""
        connection = target.connection()
        target.in_flight += 1
        if self.prompt.tokens and not self._tried and isinstance(self._lane.placing, Precise):
            self._belief = target, self._lane.placing.believed
        self._tried.append(target)
        if self._recording is not None:
            self._recording.placed(target.group, target.name)
        self._lane.placing.sent(connection, self.prompt)
        self._send_on(connection)

    def _send_on(self, connection: Connection) -> None:
        so_far = self._so_far
        body = self._body if so_far is None else so_far.asking(connection.target.continues)
        self._post(connection, self.endpoint, body, self)

    def _post(self, connection: Connection, endpoint: str, body: bytes, receiver: Receiver) -> None:
        target = connection.target
        if target.breaker.tripped:
            target.breaker.began()
        self._attempts.append(connection)
        connection.send(
            b"%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n"
            % (target.head("POST", endpoint), self._forwarded, self._trace, self.request_id, len(body)),
            body,
            receiver,
        )

    def _send_hedge(self) -> None:
        """The first byte is late: ask another target as well, if the budget has one left."""
        self._timer = None
        now = perf_counter()
        others = self._others(now)
        if others and self._lane.take_hedge(now):
            self._send(self._lane.placing.choose(others, self.prompt, now))
            self._hedge = self._attempts[-1]

    def _others(self, now: float) -> list[Target]:
        return [target for target in self._lane.targets.ready(self.model, now) if target not in self._tried]

    def _next(self, now: float) -> Target | None:
        """Where to retry, if there is somewhere and the budget allows it."""
        lane = self._lane
        if self._retries >= lane.targets.options.retries:
            return None
        others = self._others(now)
        if not others or not lane.take_retry(now):
            return None
        self._retries += 1
        return lane.placing.choose(others, self.prompt, now)

    def _drop(self, connection: Connection) -> None:
        """``connection`` is no attempt of this request any more."""
        self._attempts.remove(connection)
        connection.target.in_flight -= 1
        self._lane.placing.ended(connection)
        if self._lane.holding is not None:
            self._lane.holding.touch()

    def _close_attempts(self, but: Connection | None = None) -> None:
        """Close every connection at once, save one."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        if self._held is not None:
            self._held.leave(self)
            self._release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self._attempts):
            if connection is not but:
                connection.close()
                connection.target.counts.abandoned += 1
                connection.target.breaker.abandoned()
                self._drop(connection)

    # What connections to targets call

    def on_data(self, connection: Connection, data: bytes, ended: bool) -> None:
        try:
            if self._winner is None:
                if not data and not ended:
                    return  # a head alone promises nothing yet
                if connection.status >= 300 and self._go_elsewhere(connection, ended):
                    return
                if ended:
                    _check_answer(connection, data)
                self._win(connection)
            stream = self._stream
            if stream is not None:
                if ended and not self._may_end(connection, stream, data):
                    stream.add(data, False)
                    raise cut_off()
                stream.add(data, ended)
                if ended:
                    self._finish(connection, tally(stream.tail))
            elif ended:
                self._answer(connection, data)
            else:
                self._keep(connection, data)
        except Fault as fault:
            connection.close()
            self.on_fault(connection, fault)
        except Exception:
            self.crashed()

    def on_fault(self, connection: Connection, fault: Fault) -> None:
        target = connection.target
        if fault.kind == "lost" and connection.reused and not connection.heard:
            # It was closed before the request had reached it: nobody's fault, and nothing has been tried.
            self._attempts.remove(connection)
            target.breaker.abandoned()
            again = target.connection(fresh=True)
            again.ticket = connection.ticket
            self._send_on(again)
            return
        now = perf_counter()
        self.failed(connection, fault, now)
        if self._stream is not None and self._stream.begun:
            self._go_on(target, fault, now)
            return
        self._winner = self._stream = self._kept = None
        if self._attempts:
            return  # the hedge goes on
        other = self._next(now)
        if other is None:
            self._fail(_no_answer(fault))
        else:
            self._send(other)

    def _go_on(self, broken: Target, fault: Fault, now: float) -> None:
        """Have another target go on with the stream, or say that it is broken."""
        stream = self._stream
        if not isinstance(stream, Remembering):
            self.give_up(fault, self._so_far.why_not_with(broken.continues) if self._so_far is not None else "")
            return
        try:
            Continuation(self, stream, broken).begin(now)
        except ValueError as error:
            self.give_up(fault, str(error))

    def _go_elsewhere(self, connection: Connection, ended: bool) -> bool:
        """Whether another target is asked, because of this one's status."""
        status, target, now = connection.status, connection.target, connection.last
        if status >= 500:
            self._lane.target_failed(target, now)
        if status not in _OVERLOADED:
            return False
        again = None
        if len(self._attempts) == 1 and (again := self._next(now)) is None:
            return False
        if status == 429:
            target.counts.refused += 1
        else:
            target.counts.failed += 1
        if not ended:
            connection.close()
        target.breaker.abandoned()
        self._drop(connection)
        if again is not None:
            self._send(again)
        return True

    def _win(self, connection: Connection) -> None:
        """The first byte: this connection's answer is the one."""
        self._winner = connection
        if connection is self._hedge:
            self._lane.hedge_won()
        if self._timer is not None or len(self._attempts) > 1:
            self._close_attempts(but=connection)
        if self._queued:
            self._queued = False
            self._lanes.context.queued -= 1
        streamed = connection.content_type.startswith(b"text/event-stream")
        if self._recording is not None:
            self._recording.answers(connection.target.name, connection.target.provider, stream=streamed)
        if streamed:
            self._stream = self._begin(connection, events=True)
        self._lane.answering(self, connection, connection.last - self._received, streamed)

    def _begin(self, connection: Connection, *, events: bool) -> Stream:
        chunked = self.head.chunked
        self._keep_alive = self._keep_alive and chunked
        head = heads.beginning(
            _lines(connection), self.request_id, self.variant, chunked=chunked, keep_alive=self._keep_alive
        )
        ending = self._delivery.hold if self._delivery is not None else None
        so_far, continues = self._so_far, connection.target.continues
        if so_far is not None and events and connection.status == 200 and so_far.follows(continues):
            so_far.begin(continues)
            return Remembering(self._client, head, so_far, chunked=chunked, seen=self._seen(), ending=ending)
        return Stream(self._client, head, events=events, chunked=chunked, seen=self._seen(), ending=ending)

    def _hold(self) -> None:
        """What is written next is the last of the answer: it waits for the record."""
        if self._delivery is not None:
            self._delivery.hold()

    def _seen(self) -> Seen | None:
        """Who is told of what the client gets to read, if anybody is."""
        return self._recording.arrived if self._recording is not None else None

    def _keep(self, connection: Connection, data: bytes) -> None:
        """Keep a part of an answer that is no stream, or begin to send it on if it is long."""
        if self._kept is None:
            self._kept = []
        self._kept.append(data)
        if sum(map(len, self._kept)) > _KEPT:
            self._stream = self._begin(connection, events=False)
            self._stream.add(b"".join(self._kept), ended=False)
            self._kept = None

    def _answer(self, connection: Connection, data: bytes) -> None:
        """A whole answer, kept until now."""
        if self._kept is not None:
            data = b"".join([*self._kept, data])
            _check_answer(connection, data)
        status = connection.status
        if status >= 300 and (replaced := _replacement(connection)) is not None:
            self._drop(connection)
            self._fail(replaced)
            return
        if status >= 400 and self._recording is not None:
            self._recording.refused(data)
        elif (seen := self._seen()) is not None:
            seen(data)
        self._hold()
        self._client.write(heads.answer(_lines(connection), self.request_id, self.variant, data, self._keep_alive))
        self._finish(connection, tally_whole(data) if status == 200 else NO_TALLY)

    def _may_end(self, connection: Connection, stream: Stream, data: bytes) -> bool:
        """Whether the answer is complete with this last part of it."""
        tail = stream.tail_with(data)
        if stream.events:
            return endpoints.may_end(self.endpoint, tail)
        return connection.framed or tail.rstrip().endswith(b"}")

    def _finish(self, connection: Connection, tally: Tally) -> None:
        """The answer is complete."""
        self._drop(connection)
        status = connection.status
        if self._meter is not None:
            self._meter.tally = tally
        if self._recording is not None:
            self._recording.told(tally)
        if tally is not NO_TALLY:
            with careful:  # the client has its answer: nothing may be said after it
                self._lane.count(self, tally)
                if self._belief is not None:
                    self._compare(connection.target, tally)
        self._end(status, "ok" if status < 400 else outcome_of(status))
        self._client.done(not self._keep_alive)

    def _compare(self, target: Target, tally: Tally) -> None:
        """Count what was believed of a target's cache, and what the target found there."""
        assert self._belief is not None
        placed, believed = self._belief
        if placed is target and tally.prompt_tokens:
            target.counts.believed += believed
            target.counts.found += tally.cached_tokens

    # What a continuation calls

    @property
    def retries_allowed(self) -> int:
        """How many targets may go on with an answer, one after the other."""
        return self._lane.targets.options.retries

    def ready(self, now: float) -> list[Target]:
        """The targets that may get a request for the model now."""
        return self._lane.targets.ready(self.model, now)

    def choose(self, targets: list[Target], now: float) -> Target:
        """Where the rest of the answer should come from."""
        return self._lane.placing.choose(targets, self.prompt, now)

    def send_rest(self, target: Target, endpoint: str, body: bytes, receiver: Receiver) -> None:
        """Ask the target that was chosen for the rest of the answer."""
        connection = self._winner = target.connection(fresh=True)
        target.in_flight += 1
        if self._recording is not None:
            self._recording.goes_on(target.name)
        self._lane.placing.sent(connection, self.prompt)
        self._post(connection, endpoint, body, receiver)

    def goes_on(self, connection: Connection) -> None:
        """The first of the rest has come."""
        self._lane.goes_on(connection)

    def failed(self, connection: Connection, fault: Fault, now: float) -> None:
        """A target failed with the request."""
        target = connection.target
        self._drop(connection)
        target.counts.failed += 1
        self._lane.target_failed(target, now)
        said = (self.request_id.decode(), target.name, fault.kind, fault)
        log.warning("request=%s upstream=%s %s: %s", *said, extra=self.about)

    def give_up(self, fault: Fault, why_not: str) -> None:
        """End a stream that has begun, because of a fault; ``why_not`` is why nobody goes on with it."""
        self._break(_no_answer(fault, why_not))

    def end_rest(self, connection: Connection | None) -> None:
        """The last of the rest has been sent on."""
        if connection is not None:
            self._drop(connection)
        if self._stream is not None:
            said = tally(self._stream.tail)
            self._lane.count(self, said)
            if self._meter is not None:
                self._meter.tally = said
            if self._recording is not None:
                self._recording.told(said)
        self._end(200, "ok")
        self._client.done(not self._keep_alive)

    # The end

    def _break(self, error: errors.ApiError) -> None:
        """There won't be (more of) an answer: say so in the way that is still possible."""
        stream = self._stream
        if stream is None or not stream.begun:
            self._fail(error)
            return
        if self._recording is not None:
            self._recording.failed(error)
        if stream.events:
            stream.break_off(endpoints.fault_event(self.endpoint, error, self.request_id))
            self._end(200, "failed")
            self._client.done(not self._keep_alive)
        else:
            self._client.abort()
            self._end(200, "failed")

    def _fail(self, error: errors.ApiError) -> None:
        """Answer with an error."""
        if self._recording is not None:
            self._recording.failed(error)
        if error.headers.get("connection") == "close":
            self._keep_alive = False
        body = endpoints.fault_body(self.endpoint, error, self.request_id)
        self._hold()
        self._client.write(heads.error(error, self.request_id, self.variant, self._keep_alive, body))
        self._end(error.status, outcome_of(error.status))
        self._client.done(not self._keep_alive)

    def _end(self, status: int, outcome: Outcome) -> None:
        if self._queued:
            self._queued = False
            self._lanes.context.queued -= 1
        if self._meter is not None:
            self._meter.settle(outcome, status, sent=bool(self._tried))
        if self._recording is not None:
            self._hold()
            delivery = self._delivery
            self._recording.end(status, outcome, self.variant, delivery.release if delivery is not None else None)
        self._lanes.ended(self, status, outcome, perf_counter() - self._received)


def _lines(connection: Connection) -> bytes:
    """What of an answer's head goes on to the client: the same as long as the target says the same."""
    if not connection.lines:
        connection.lines = heads.answer_lines(connection.status, connection.headers)
    return connection.lines


def _check_answer(connection: Connection, data: bytes) -> None:
    """See that a whole answer looks like what all endpoints answer with: it isn't empty, HTML, or cut short.

    Raises:
        Fault: it doesn't.
    """
    if connection.status >= 300 or (data.startswith(b"{") and data.endswith(b"}")):
        return
    said = data.strip()
    if said.startswith(b"{") and said.endswith(b"}"):
        return
    if connection.content_type.startswith(b"text/event-stream") or b"content-encoding" in dict(connection.headers):
        return
    raise Fault("garbage", f"status {connection.status}, but no JSON object")


def _no_answer(fault: Fault, why_not: str = "") -> errors.ApiError:
    """What a client is told when no target answered; ``why_not``: why none went on with an answer that broke off."""
    if why_not:
        fault = Fault(fault.kind, f"{fault}, and no other one could go on with it ({why_not})")
    if fault.kind == "garbage":
        return errors.bad_upstream(f"The upstream's answer can't be used: {fault}.")
    if fault.kind == "timeout":
        return errors.upstream_timeout(f"The upstream can't be waited for any longer: {fault}.")
    if fault.kind == "lost":
        return errors.bad_upstream(f"The upstream broke off its answer: {fault}.")
    return errors.unavailable(f"No upstream could be reached: {fault}.", _RETRY_AFTER)


def _replacement(connection: Connection) -> errors.ApiError | None:
    """What stands for an answer that clients could not read; None where it goes on as it is."""
    status = connection.status
    if status in (401, 403) and connection.target.options.key is not None:
        return errors.bad_upstream("The upstream refuses this gateway's key.")
    if status < 400:
        return errors.bad_upstream(f"The upstream answered with status {status}, which is no answer.")
    if b"json" in connection.content_type:
        return None
    if status == 429:
        return errors.overloaded(_RETRY_AFTER, "The upstream is busy.")
    if status == 503:
        return errors.unavailable("The upstream can't answer now.", _RETRY_AFTER)
    if status >= 500:
        return errors.bad_upstream(f"The upstream failed with status {status}.")
    return errors.ApiError(status, f"The upstream refused the request with status {status}.", code="invalid_value")
