"""How does a stream go on elsewhere when its upstream dies, falls silent or talks nonsense in the middle of it?

`Remembering` is a stream that knows what has come, and finds nonsense out. A `Continuation` takes the place of the
exchange as the one who listens: it asks another upstream for the rest, as a completion of all tokens so far, and lets
that flow into the client's stream as if nothing had happened. An upstream that fails with it is followed by the next,
as often as a request may be retried.
"""

import logging
from time import perf_counter
from typing import TYPE_CHECKING, Final

from gateway.fleet.upstream.connection import Connection, Fault
from gateway.fleet.upstream.target import Target
from gateway.lane.answer_so_far import AnswerSoFar
from gateway.lane.stream import ENDS, Ending, Seen, Stream, Writer

if TYPE_CHECKING:
    from gateway.lane.exchange import Exchange

_ENDPOINT: Final = "/v1/completions"

log = logging.getLogger(__name__)


class Remembering(Stream):
    """A stream of events that are remembered in ``so_far``."""

    __slots__ = ("so_far",)

    def __init__(
        self,
        writer: Writer,
        head: bytes,
        so_far: AnswerSoFar,
        *,
        chunked: bool,
        seen: Seen | None,
        ending: Ending | None,
    ) -> None:
        super().__init__(writer, head, events=True, chunked=chunked, seen=seen, ending=ending)
        self.so_far = so_far

    def add(self, data: bytes, ended: bool) -> None:
        """More of the answer, or (``ended``) the last of it.

        Raises:
            Fault: what came is no (end of an) answer; what came before that has been sent on.
        """
        so_far = self.so_far
        data = self._whole(data, ended)
        if data:
            data = so_far.take(data) if data.endswith(ENDS) or ended else self._too_long(data)
        over = so_far.complete or bool(so_far.why_not)
        self._pass(data, ended and over)
        if ended and not over:
            raise cut_off()

    def add_rest(self, data: bytes, ended: bool) -> None:
        """The same for what another upstream goes on with.

        Raises:
            Fault: as above.
        """
        data = self._whole(data, ended)
        self._pass(self.so_far.rejoin(data) if data else b"", ended and self.so_far.complete)
        if ended and not self.so_far.complete:
            raise cut_off()

    def end(self) -> None:
        """Say what is left to say of an answer whose tokens have all come."""
        self._pass(self.so_far.ending(), True)

    def break_off(self, event: bytes) -> None:
        self.cut()
        self.so_far.fault = None
        self._pass(event, True)

    def cut(self) -> None:
        """Forget half an event, the rest of which won't come."""
        self._partial = b""

    def _whole(self, data: bytes, ended: bool) -> bytes:
        """The whole events of what has come; the rest waits."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        return data if ended or data.endswith(ENDS) else self._hold_back(data)

    def _too_long(self, data: bytes) -> bytes:
        self.so_far.forget("an event was too long to be kept")
        return data

    def _pass(self, data: bytes, ended: bool) -> None:
        if data or ended:
            partial, self._partial = self._partial, b""
            super().add(data, ended)
            self._partial = partial
        if self.so_far.fault is not None:
            raise self.so_far.fault


def cut_off() -> Fault:
    """What is the matter with an answer that has ended, but isn't complete."""
    return Fault("lost", "it ended its answer before it was complete")


class Continuation:
    """Goes on with one stream.

    Args:
        exchange: the request.
        stream: its answer, as far as it has come.
        broken: the upstream that it came from.
    """

    def __init__(self, exchange: "Exchange", stream: Remembering, broken: Target) -> None:
        self._exchange = exchange
        self._stream = stream
        self._failed = [broken]
        self._begun = False

    def begin(self, now: float) -> None:
        """Ask another upstream for the rest, or end the stream if there is none.

        Raises:
            ValueError: it can't go on; the message says why.
        """
        exchange, stream, so_far = self._exchange, self._stream, self._stream.so_far
        stream.cut()
        so_far.fault = None
        if so_far.over:
            stream.end()
            exchange.end_rest(None)
            return
        if so_far.why_not:
            raise ValueError(so_far.why_not)
        if so_far.moves >= exchange.retries_allowed:
            raise ValueError(f"{len(self._failed)} upstreams have failed with it")
        able = [
            target for target in exchange.ready(now) if target.continues == so_far.kind and target not in self._failed
        ]
        if not able:
            raise ValueError("no other upstream that could go on with it is ready")
        target = exchange.choose(able, now)
        body = so_far.rest(target.max_len)
        so_far.moves += 1
        self._begun = False
        exchange.send_rest(target, _ENDPOINT, body, self)
        said = (exchange.request_id.decode(), target.name)
        log.info("request=%s goes on with upstream=%s", *said, extra=exchange.about)

    def on_data(self, connection: Connection, data: bytes, ended: bool) -> None:
        try:
            self._take(connection, data, ended)
        except Fault as fault:
            connection.close()
            self.on_fault(connection, fault)
        except Exception:
            self._exchange.crashed()

    def _take(self, connection: Connection, data: bytes, ended: bool) -> None:
        if not self._begun:
            if not data and not ended:
                return
            if connection.status != 200 or not connection.content_type.startswith(b"text/event-stream"):
                raise Fault("garbage", f"it refused to go on, with status {connection.status}")
            self._begun = True
            self._exchange.goes_on(connection)
        self._stream.add_rest(data, ended)
        if ended:
            self._exchange.end_rest(connection)

    def on_fault(self, connection: Connection, fault: Fault) -> None:
        now = perf_counter()
        self._exchange.failed(connection, fault, now)
        self._failed.append(connection.target)
        try:
            self.begin(now)
        except ValueError as error:
            self._exchange.give_up(fault, str(error))
