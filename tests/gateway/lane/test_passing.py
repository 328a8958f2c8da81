"""Requests that pass through, and what is said to those that can't."""

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.gateway.harness import read_answer, request_bytes, run
from tests.gateway.lane.harness import CHAT, chat, lane, until
from tests.gateway.lane.upstream import USAGE, Talk, Upstream, obliging


def test_the_official_client_is_answered() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway, gateway.openai() as client:
            answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
            assert answer.choices[0].message.content == "one two three"
            assert answer.usage is not None
            assert answer.usage.total_tokens == 10
            stream = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
            assert chunks[-1].usage is not None
            assert [model.id for model in (await client.models.list()).data] == ["m"]
            labels = 'endpoint="/v1/chat/completions",model="m",outcome="ok",status="200"'
            assert gateway.metric(f"penstock_requests_total{{{labels}}}") == 2
            assert gateway.metric('penstock_prompt_tokens_total{model="m"}') == 14
            assert gateway.metric('penstock_cached_tokens_total{model="m"}') == 8
            assert gateway.metric('penstock_output_tokens_total{model="m"}') == 6

    run(scenario())


def test_bodies_pass_through_byte_for_byte() -> None:
    odd = b'{ "messages" : [ {"role":"user","content":"h\\u00e9 \xc3\xa9"} ],\n"model":"m" , "x":[1e3,{"y":null}] }'
    answer = b'{"id":1,\n "choices":[],"odd":"\\ud83d\\ude00"}'

    async def scripted(talk: Talk) -> None:
        talk.reply(answer, x_special="yes", server="hidden")

    async def scenario() -> None:
        async with Upstream(scripted) as upstream, lane(upstream) as gateway:
            got = await gateway.post(odd, x_request_id="mine-1", x_extra="kept", accept_encoding="gzip", cookie="c=1")
            assert got.body == answer
            assert got.headers["x-special"] == "yes"
            assert got.headers["x-request-id"] == "mine-1"
            assert got.headers["x-penstock-variant"] == "default"
            assert "server" not in got.headers
            (request,) = upstream.requests
            assert request.body == odd
            assert request.line == f"POST {CHAT} HTTP/1.1"
            assert request.headers["x-extra"] == "kept"
            assert request.headers["cookie"] == "c=1"
            assert request.headers["x-request-id"] == "mine-1"
            assert request.headers["host"] == f"127.0.0.1:{upstream.port}"
            assert "accept-encoding" not in request.headers

    run(scenario())


def test_connections_are_kept_on_both_sides() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream, probe_every=60.0) as gateway:
            before = upstream.accepted
            reader, writer = await gateway.connect()
            for _ in range(5):
                writer.write(request_bytes("POST", CHAT, chat()))
                assert (await read_answer(reader)).status == 200
            writer.write(request_bytes("GET", "/health/ready", b""))
            assert (await read_answer(reader)).status == 200
            writer.write(request_bytes("POST", CHAT, chat(stream=True)))
            assert (await read_answer(reader)).events[-1] == "[DONE]"
            writer.close()
            assert upstream.accepted == before + 1

    run(scenario())


def test_a_probes_connection_is_never_taken_for_a_request() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream, probe_every=0.001, load_every=0.001) as gateway:
            upstream.page = b"vllm:num_requests_running 0\n"
            for _ in range(10):
                answers = await asyncio.gather(*(gateway.post(chat()) for _ in range(20)))
                assert [answer.status for answer in answers] == [200] * 20

    run(scenario())


def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def slow_first(talk: Talk) -> None:
        await asyncio.sleep(0.05 if talk.request.json["n"] == 0 else 0)
        talk.reply({"n": talk.request.json["n"]})

    async def scenario() -> None:
        async with Upstream(slow_first) as upstream, lane(upstream) as gateway:
            reader, writer = await gateway.connect()
            asked = [request_bytes("POST", CHAT, chat(n=n)) for n in range(3)]
            asked.insert(1, request_bytes("GET", "/health/live", b""))
            asked.append(request_bytes("GET", "/v1/models", b""))
            writer.write(b"".join(asked))
            answers = [(await read_answer(reader)).json for _ in range(5)]
            writer.close()
            assert [answer.get("n", answer.get("status")) for answer in answers] == [0, "live", 1, 2, None]
            assert answers[-1]["data"][0]["id"] == "m"

    run(scenario())


def test_completions_and_embeddings_pass_too_and_a_body_may_come_in_pieces() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            for path in ("/v1/completions", "/v1/embeddings"):
                answer = await gateway.post({"model": "m", "prompt": "x" * 100_000, "input": "y"}, path)
                assert answer.status == 200
                assert upstream.requests[-1].line.startswith(f"POST {path} ")
            reader, writer = await gateway.connect()
            data = json.dumps(chat("z" * 3000)).encode()
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            for start in range(0, len(data), 700):
                part = data[start : start + 700]
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await asyncio.sleep(0.001)
            writer.write(b"0\r\n\r\n")
            assert (await read_answer(reader)).status == 200
            assert upstream.requests[-1].body == data
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model": "m", ', 400, "invalid_json"),
        (b"[1]", 400, "invalid_type"),
        (b'{"messages": []}', 400, "missing_required_parameter"),
        (b'{"model": 3}', 400, "invalid_type"),
        (b'{"model": "gone", "messages": []}', 404, "model_not_found"),
        (b"\xff\xfe", 400, "invalid_json"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_in_openais_form(body: bytes, status: int, code: str) -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            answer = await gateway.post(body)
            assert (answer.status, answer.json["error"]["code"]) == (status, code)
            assert answer.headers["x-request-id"].startswith("req-")
            assert upstream.requests == []

    run(scenario())


def test_a_body_that_is_too_large_is_refused_before_it_is_all_there() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream, max_body=10_000) as gateway:
            reader, writer = await gateway.connect()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 20000\r\n\r\n" + b" " * 15000
            )
            answer = await read_answer(reader)
            assert (answer.status, answer.json["error"]["code"]) == (413, "request_too_large")
            writer.write(b" " * 5000)
            assert await reader.read() == b""
            writer.close()
            assert upstream.requests == []

    run(scenario())


def test_keys_are_checked_and_stay_here() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream, keys=("sk-one", "sk-two"), key="sk-up") as gateway:
            for key in ("", "sk-three", "sk-on"):
                with pytest.raises(openai.AuthenticationError) as refused:
                    async with gateway.openai(key or "x") as client:
                        await client.chat.completions.create(model="m", messages=[])
                assert refused.value.code == "invalid_api_key"
            assert (await gateway.post(chat())).status == 401
            assert (await gateway.get("/v1/models")).status == 401
            assert (await gateway.get("/health/live")).status == 200
            async with gateway.openai("sk-two") as client:
                await client.chat.completions.create(model="m", messages=[])
                await client.models.list()
            assert upstream.requests[-1].headers["authorization"] == "bearer sk-up"

    run(scenario())


def test_without_keys_of_our_own_the_clients_goes_on() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway, gateway.openai("sk-client") as client:
            await client.chat.completions.create(model="m", messages=[])
            assert upstream.requests[-1].headers["authorization"] == "bearer sk-client"

    run(scenario())


def test_an_old_client_gets_its_stream_until_the_connection_ends() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            reader, writer = await gateway.connect()
            data = json.dumps(chat(stream=True)).encode()
            writer.write(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            assert b"chunked" not in head
            assert b"connection: close" in head
            assert body.endswith(b"data: [DONE]\n\n")

    run(scenario())


def test_models_of_different_names_are_on_different_upstreams() -> None:
    async def scenario() -> None:
        async with (
            Upstream(models=("a", "both")) as first,
            Upstream(models=("b", "both")) as second,
            lane(first, second) as gateway,
        ):
            for name in ("a", "b", "both", "both"):
                assert (await gateway.post({"model": name, "messages": []})).status == 200
            assert [request.json["model"] for request in first.requests] == ["a", "both"]
            assert [request.json["model"] for request in second.requests] == ["b", "both"]
            assert [model["id"] for model in (await gateway.get("/v1/models")).json["data"]] == ["a", "both", "b"]
            assert (await gateway.get("/v1/models/b")).json["id"] == "b"
            assert (await gateway.get("/v1/models/c")).status == 404

    run(scenario())


def test_a_queue_that_is_full_refuses() -> None:
    async def scenario() -> None:
        begin = asyncio.Event()

        async def waiting(talk: Talk) -> None:
            await begin.wait()
            await obliging(talk)

        async with Upstream(waiting) as upstream, lane(upstream, max_queue=2) as gateway:
            sent = [await gateway.send(chat()) for _ in range(2)]
            await until(lambda: gateway.context.queued == 2)
            refused = await gateway.post(chat())
            assert (refused.status, refused.json["error"]["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            begin.set()
            assert [(await one.answer()).status for one in sent] == [200, 200]
            assert gateway.context.queued == 0

    run(scenario())


def test_an_upstreams_own_refusal_goes_on_as_it_is() -> None:
    fault: dict[str, Any] = {
        "error": {"message": "too long", "type": "invalid_request_error", "code": "x", "param": None}
    }

    async def refusing(talk: Talk) -> None:
        talk.reply(fault, 400)

    async def scenario() -> None:
        async with Upstream(refusing) as upstream, lane(upstream) as gateway:
            answer = await gateway.post(chat())
            assert (answer.status, answer.json) == (400, fault)

    run(scenario())


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_an_answer_that_is_no_stream_is_whole_whatever_its_size(size: int) -> None:
    async def long(talk: Talk) -> None:
        talk.reply({"text": "x" * size, "usage": USAGE})

    async def scenario() -> None:
        async with Upstream(long) as upstream, lane(upstream) as gateway:
            answer = await gateway.post(chat())
            assert len(answer.json["text"]) == size
            assert gateway.metric('penstock_output_tokens_total{model="m"}') == 3

    run(scenario())


def test_events_stay_whole_however_they_arrive() -> None:
    async def torn(talk: Talk) -> None:
        talk.begin_stream()
        whole = b"".join(b'data: {"choices":[],"n":%d}\r\n\r\n' % n for n in range(20)) + b"data: [DONE]\r\n\r\n"
        for start in range(0, len(whole), 7):
            talk.chunk(whole[start : start + 7])
            await talk.writer.drain()
            await asyncio.sleep(0)
        talk.writer.write(b"0\r\n\r\n")

    async def scenario() -> None:
        async with Upstream(torn) as upstream, lane(upstream) as gateway:
            sent = await gateway.send(chat(stream=True))
            head = await sent.reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head
            count = 0
            while size := int(await sent.reader.readline(), 16):
                chunk = await sent.reader.readexactly(size)
                assert chunk.endswith(b"\r\n\r\n")
                count += chunk.count(b"data: ")
                await sent.reader.readexactly(2)
            sent.leave()
            assert count == 21

    run(scenario())
