"""Requests under a head that their connection has seen: the same as all others, however their bytes arrive."""

import asyncio
import json
import random

import pytest

from gateway.lane import protocol
from tests.gateway.harness import read_answer, request_bytes, run
from tests.gateway.lane.harness import CHAT, chat, lane, until
from tests.gateway.lane.upstream import Talk, Upstream


async def echo(talk: Talk) -> None:
    talk.reply({"echo": talk.request.json["messages"][0]["content"], "choices": []})


def request(text: str, **headers: str) -> bytes:
    return request_bytes("POST", CHAT, chat(text), headers)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was given to httptools."""
    found: list[bytes] = []
    feed = protocol.LaneProtocol._feed

    def noted(self: protocol.LaneProtocol, data: bytes) -> None:
        found.append(data)
        feed(self, data)

    monkeypatch.setattr(protocol.LaneProtocol, "_feed", noted)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_every_request_gets_its_answer(seed: int) -> None:
    rng = random.Random(seed)
    texts = ["x" * rng.choice([0, 5, 90, 3000, 70_000]) + str(n) for n in range(30)]

    async def scenario() -> None:
        async with Upstream(echo) as upstream, lane(upstream) as gateway:
            reader, writer = await gateway.connect()
            sent = b"".join(map(request, texts))

            async def send() -> None:
                left = sent
                while left:
                    size = rng.choice([1, 150, 400, 3000, 200_000]) if rng.random() < 0.8 else len(request(texts[0]))
                    writer.write(left[:size])
                    await writer.drain()
                    left = left[size:]
                    await asyncio.sleep(0)

            sending = asyncio.create_task(send())
            for text in texts:
                answer = await read_answer(reader)
                assert answer.status == 200
                assert json.loads(answer.body)["echo"] == text
            await sending
            writer.close()

    run(scenario())


def test_one_at_a_time_only_the_first_is_parsed(parsed: list[bytes]) -> None:
    async def scenario() -> None:
        async with Upstream(echo) as upstream, lane(upstream) as gateway:
            reader, writer = await gateway.connect()
            for number in range(12):
                text = "y" * number
                writer.write(request(text))
                assert json.loads((await read_answer(reader)).body)["echo"] == text
            assert parsed == [request("")]
            head, _, body = request("a body in pieces").partition(b"\r\n\r\n")
            for part in (head + b"\r\n\r\n", body[:10], body[10:] + request("the next")):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.02)
            assert json.loads((await read_answer(reader)).body)["echo"] == "a body in pieces"
            assert json.loads((await read_answer(reader)).body)["echo"] == "the next"
            writer.close()

    run(scenario())


def test_other_headers_are_read_anew() -> None:
    async def scenario() -> None:
        async with Upstream(echo) as upstream, lane(upstream, keys=["right"]) as gateway:
            reader, writer = await gateway.connect()
            for key, status in (("right", 200), ("right", 200), ("wrong", 401), ("right", 200), ("right", 200)):
                writer.write(request("hi", authorization=f"Bearer {key}"))
                assert (await read_answer(reader)).status == status
            for one in ("1", "1", "2"):
                writer.write(request("hi", authorization="Bearer right", x_extra=one))
                assert (await read_answer(reader)).status == 200
            assert [one.headers.get("x_extra") for one in upstream.requests[-3:]] == ["1", "1", "2"]
            writer.close()

    run(scenario())


def test_a_known_head_that_ends_otherwise_hides_no_request() -> None:
    """Were ``transfer-encoding`` overlooked, the chunks would be taken for a body and a request behind it."""

    async def scenario() -> None:
        async with Upstream(echo) as upstream, lane(upstream) as gateway:
            reader, writer = await gateway.connect()
            for _ in range(2):
                writer.write(request("plain"))
                assert (await read_answer(reader)).status == 200
            head, _, body = request("plain").partition(b"\r\n\r\n")
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            writer.write(head + b"\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
            answer = await read_answer(reader)
            assert answer.status == 400  # both framings at once are no HTTP
            assert await reader.read() == b""
            assert len(upstream.requests) == 2
            writer.close()

    run(scenario())


def test_what_is_too_large_is_refused_under_a_known_head_too() -> None:
    async def scenario() -> None:
        async with Upstream(echo) as upstream, lane(upstream, max_body=2000) as gateway:
            reader, writer = await gateway.connect()
            writer.write(request("small"))
            assert (await read_answer(reader)).status == 200
            writer.write(request("x" * 3000))
            assert (await read_answer(reader)).status == 413
            writer.close()

    run(scenario())


def test_a_client_that_leaves_in_the_middle_of_a_body_is_forgotten(parsed: list[bytes]) -> None:
    async def scenario() -> None:
        async with Upstream(echo) as upstream, lane(upstream) as gateway:
            reader, writer = await gateway.connect()
            writer.write(request("first"))
            assert (await read_answer(reader)).status == 200
            writer.write(request("second")[:-3])
            await writer.drain()
            await asyncio.sleep(0.02)
            assert parsed == [request("first")]
            writer.transport.abort()
            await until(lambda: not gateway.state.connections)
            assert len(upstream.requests) == 1
            assert gateway.context.in_flight == 0

    run(scenario())
