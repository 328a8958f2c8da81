"""What comes on a kept connection: each answer as it was sent, known heads or not, however the kernel cuts it up."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.upstream.address import parse_url
from gateway.fleet.upstream.connection import Connection, Fault
from gateway.fleet.upstream.options import UpstreamOptions
from gateway.fleet.upstream.target import Target


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: Any) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


class Heard:
    """A receiver."""

    def __init__(self) -> None:
        self.body = b""
        self.head: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
        self.ended = False
        self.fault: Fault | None = None

    def on_data(self, connection: Connection, data: bytes, ended: bool) -> None:
        assert not self.ended
        self.body += data
        headers = [line for line in connection.headers if line[0] not in (b"content-length", b"transfer-encoding")]
        self.head = (connection.status, headers, connection.content_type)
        self.ended = ended

    def on_fault(self, connection: Connection, fault: Fault) -> None:
        self.fault = fault


def connected() -> tuple[Connection, Wire]:
    connection, wire = Connection(Target(parse_url("http://t:80"), UpstreamOptions())), Wire()
    connection.connection_made(wire)
    return connection, wire


def ask(connection: Connection) -> Heard:
    heard = Heard()
    connection.send(b"POST / HTTP/1.1\r\n\r\n", b"", heard)
    return heard


Sent = tuple[int, list[tuple[bytes, bytes]], bytes, bytes]  # status, headers, body, the answer as sent

statuses = st.sampled_from([200, 200, 200, 400, 429, 503])
kinds = st.sampled_from([b"application/json", b"application/json", b"text/event-stream"])


def answer(status: int, kind: bytes, body: bytes, chunked: bool, interim: bool) -> Sent:
    framing = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % len(body))
    headers = [(b"server", b"x"), (b"content-type", kind)]
    lines = b"".join(b"%b: %b\r\n" % line for line in [*headers, framing])
    payload = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n" if chunked else body
    before = b"HTTP/1.1 100 Continue\r\nx-y: z\r\n\r\n" if interim else b""
    return status, headers, body, b"%bHTTP/1.1 %d Yes\r\n%b\r\n%b" % (before, status, lines, payload)


answers = st.builds(
    answer, statuses, kinds, st.binary(max_size=60), st.booleans(), st.integers(0, 5).map(lambda n: n == 0)
)


@given(st.lists(st.tuples(answers, st.booleans(), st.integers(1, 40)), min_size=1, max_size=12))
def test_answers_arrive_as_they_were_sent(sequence: list[tuple[Sent, bool, int]]) -> None:
    connection, _ = connected()
    for (status, headers, body, data), whole, piece in sequence:
        heard = ask(connection)
        step = len(data) if whole else piece
        for start in range(0, len(data), step):
            connection.data_received(data[start : start + step])
        assert heard.ended
        assert heard.fault is None
        assert heard.body == body
        assert heard.head == (status, headers, headers[1][1])


ONE = answer(200, b"application/json", b"{}", False, False)[3]
LONGER = answer(200, b"application/json", b'{"a": 1}', False, False)[3]


def test_a_head_that_comes_again_is_not_parsed_again() -> None:
    connection, _ = connected()
    first = ask(connection)
    connection.data_received(ONE)
    connection.lines = b"made of it"
    headers = connection.headers
    second = ask(connection)
    connection.data_received(LONGER)
    assert (first.body, second.body) == (b"{}", b'{"a": 1}')
    assert connection.headers is headers
    assert connection.lines == b"made of it"
    ask(connection)
    connection.data_received(ONE.replace(b"server: x", b"server: y"))
    assert connection.lines == b""


@pytest.mark.parametrize("surplus", [b"x", ONE])
def test_more_than_one_answer_is_garbage_after_a_known_head_too(surplus: bytes) -> None:
    connection, wire = connected()
    ask(connection)
    connection.data_received(ONE)
    heard = ask(connection)
    connection.data_received(LONGER + surplus)
    assert heard.fault is not None
    assert heard.fault.kind == "garbage"
    assert wire.closed


def test_an_answer_to_no_question_closes_the_connection() -> None:
    connection, wire = connected()
    ask(connection)
    connection.data_received(ONE)
    connection.data_received(ONE)
    assert wire.closed


def test_a_server_that_closes_is_not_asked_again() -> None:
    connection, wire = connected()
    heard = ask(connection)
    connection.data_received(ONE.replace(b"server: x", b"connection: close"))
    assert heard.ended
    assert wire.closed
