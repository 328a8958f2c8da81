"""Models that are served here and upstreams on one port: each request takes the way of its model, whole and in turn."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from time import perf_counter
from typing import Any

import pytest

from gateway.http_protocol import look_after
from tests.gateway.harness import read_answer, request_bytes, run
from tests.gateway.lane.harness import CHAT, chat, lane, until
from tests.gateway.lane.upstream import Upstream

Message = MutableMapping[str, Any]


class Here:
    """An application that tells what it got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.left = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Coroutine[Any, Any, Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        body, more = b"", scope["method"] == "POST"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        waiting = asyncio.create_task(self.go_on.wait())
        leaving = asyncio.create_task(receive())
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        self.left += not waiting.done()
        for task in (waiting, leaving):
            task.cancel()
        names = sorted(name.decode() for name, _ in scope["headers"])
        said = json.dumps({"here": scope["path"], "size": len(body), "headers": names}).encode()
        head = [(b"content-length", b"%d" % len(said)), (b"x-here", b"yes")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": said, "more_body": False})


def for_here(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "ours", "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize("size", [10, 70_000, 400_000])
def test_a_request_goes_where_its_model_is(size: int) -> None:
    async def scenario() -> None:
        here = Here()
        async with Upstream() as upstream, lane(upstream, app=here, here=["ours"]) as gateway:
            body = json.dumps(for_here("x" * size)).encode()
            answer = await gateway.post(body, authorization="Bearer sk")
            assert answer.json["here"] == CHAT and here.bodies == [body]
            assert "authorization" in answer.json["headers"]
            assert (await gateway.post(chat("x" * size))).headers.get("x-here") is None
            assert (await gateway.get("/anything")).json["here"] == "/anything"
            assert len(upstream.requests) == 1

    run(scenario())


def test_requests_of_one_connection_are_answered_in_their_order_whichever_way_they_take() -> None:
    async def scenario() -> None:
        here = Here()
        async with Upstream() as upstream, lane(upstream, app=here, here=["ours"]) as gateway:
            bodies = [
                for_here(),
                chat(),
                for_here("longer"),
                for_here(),
                chat(),
                chat(),
                for_here("x" * 70_000),
                chat(),
            ]
            messages = b"".join(request_bytes("POST", CHAT, body) for body in bodies)
            for cut in (len(messages), 300, 70_400):
                reader, writer = await gateway.connect()
                writer.write(messages[:cut])
                await asyncio.sleep(0.05 if cut < len(messages) else 0)
                writer.write(messages[cut:])
                ways = ["here" if "here" in (await read_answer(reader)).json else "there" for _ in bodies]
                assert ways == ["here" if body["model"] == "ours" else "there" for body in bodies]
                writer.close()

    run(scenario())


def test_requests_under_the_same_head_are_told_apart_by_their_models() -> None:
    async def scenario() -> None:
        here = Here()
        async with Upstream() as upstream, lane(upstream, app=here, here=["ours"]) as gateway:
            reader, writer = await gateway.connect()
            for number in range(24):
                ours = number % 3 == 2 or number > 18
                body = json.dumps((for_here if ours else chat)(f"number {number} " * (number % 5 + 1))).encode()
                message = request_bytes("POST", CHAT, body)
                cut = len(message) - (7 if number % 2 else 0)
                writer.write(message[:cut])
                await asyncio.sleep(0.005)
                writer.write(message[cut:])
                answer = await read_answer(reader)
                assert (answer.headers.get("x-here") == "yes") == ours
                assert (here.bodies if ours else [request.body for request in upstream.requests])[-1] == body
            writer.close()

    run(scenario())


def test_a_body_in_chunks_and_a_client_that_asks_whether_to_go_on() -> None:
    async def scenario() -> None:
        here = Here()
        async with Upstream() as upstream, lane(upstream, app=here, here=["ours"]) as gateway:
            for body in (for_here("chunks"), chat("chunks")):
                text = json.dumps(body).encode()
                reader, writer = await gateway.connect()
                head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
                writer.write(head.encode())
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                writer.write(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (text[:20], text[20:])))
                writer.write(b"0\r\n\r\n")
                answer = await read_answer(reader)  # and not another 100 before it
                assert answer.status == 200
                writer.close()
            assert json.loads(here.bodies[0]) == for_here("chunks")
            assert upstream.requests[0].json == chat("chunks")

    run(scenario())


def test_an_old_client_and_one_that_closes_are_let_go_after_their_answer() -> None:
    async def scenario() -> None:
        here = Here()
        async with Upstream() as upstream, lane(upstream, app=here, here=["ours"]) as gateway:
            body = json.dumps(for_here()).encode()
            for head in ("HTTP/1.0\r\n", "HTTP/1.1\r\nconnection: close\r\n"):
                reader, writer = await gateway.connect()
                writer.write(f"POST {CHAT} {head}host: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
                assert b'"here"' in await reader.read()
                writer.close()

    run(scenario())


def test_what_says_no_model_is_refused_and_what_is_too_large_as_well() -> None:
    async def scenario() -> None:
        here = Here()
        async with Upstream() as upstream, lane(upstream, app=here, here=["ours"], max_body=1000) as gateway:
            assert (await gateway.post(b"{}")).json["error"]["code"] == "missing_required_parameter"
            assert (await gateway.post(b"no")).json["error"]["code"] == "invalid_json"
            assert (await gateway.post(for_here("x" * 2000))).status == 413
            assert here.bodies == [] and upstream.requests == []

    run(scenario())


def test_a_client_that_leaves_is_noticed_here_too() -> None:
    async def scenario() -> None:
        here = Here()
        here.go_on.clear()
        async with Upstream() as upstream, lane(upstream, app=here, here=["ours"]) as gateway:
            sent = await gateway.send(for_here())
            await until(lambda: here.bodies)
            sent.leave()
            await until(lambda: here.left)

    run(scenario())


def test_without_upstreams_nothing_is_read_before_the_application_has_it() -> None:
    async def scenario() -> None:
        here = Here()
        async with lane(app=here, here=["ours"], ready=False) as gateway:
            gateway.lanes.lead({}, choosing=True)
            reader, writer = await gateway.connect()
            body = json.dumps(for_here()).encode()
            message = request_bytes("POST", CHAT, body)
            writer.write(message[:-5])
            await asyncio.sleep(0.05)
            assert here.bodies == []
            writer.write(message[-5:])
            assert (await read_answer(reader)).json["size"] == len(body)
            writer.close()

    run(scenario())


def test_a_connection_is_idle_since_its_last_answer_whoever_gave_it() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream, app=Here(), here=["ours"]) as gateway:
            reader, writer = await gateway.connect()
            for body in (chat(), for_here()):
                writer.write(request_bytes("POST", CHAT, body))
                await read_answer(reader)
            begun = perf_counter()
            look_after(gateway.state.connections, begun, 75)
            writer.write(request_bytes("POST", CHAT, chat()))
            await read_answer(reader)
            look_after(gateway.state.connections, begun + 80, 75)
            look_after(gateway.state.connections, begun + 150, 75)
            await asyncio.sleep(0.01)
            assert not reader.at_eof()
            look_after(gateway.state.connections, begun + 160, 75)
            assert await reader.read() == b""
            writer.close()

    run(scenario())
