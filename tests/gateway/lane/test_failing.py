"""Clients that leave and upstreams that fail, in every way there is."""

import asyncio
import json
import socket
from typing import Any

import openai
import pytest

from gateway.fleet.upstream.address import parse_url
from gateway.lane.placer import placing
from gateway.wire import errors
from tests.gateway.harness import read_answer, run
from tests.gateway.lane.harness import Lane, chat, lane, until
from tests.gateway.lane.upstream import Talk, Upstream, obliging, sse


async def never(talk: Talk) -> None:
    await asyncio.sleep(60)


async def two_words_and_then_nothing(talk: Talk) -> None:
    talk.begin_stream()
    talk.event("one")
    talk.event(" two")
    await asyncio.sleep(60)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_byte_frees_the_upstream_at_once(stream: bool) -> None:
    async def scenario() -> None:
        async with Upstream(never) as upstream, lane(upstream) as gateway:
            sent = await gateway.send(chat(stream=stream))
            await until(lambda: upstream.requests)
            sent.leave()
            async with asyncio.timeout(1):
                await upstream.left.wait()
            await until(lambda: gateway.context.in_flight == 0)
            assert gateway.targets[0].in_flight == gateway.context.queued == 0
            assert gateway.metric("penstock_disconnects_total") == 1
            assert gateway.targets[0].counts.abandoned == 1

    run(scenario())


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_the_upstream_at_once() -> None:
    async def scenario() -> None:
        async with Upstream(two_words_and_then_nothing) as upstream, lane(upstream) as gateway:
            sent = await gateway.send(chat(stream=True))
            await sent.reader.readuntil(b" two")
            sent.leave()
            async with asyncio.timeout(1):
                await upstream.left.wait()
            await until(lambda: gateway.context.in_flight == 0)
            assert gateway.targets[0].in_flight == 0

    run(scenario())


@pytest.mark.parametrize("status", [None, 429, 502, 503, 504])
def test_what_fails_before_the_first_byte_is_answered_by_another(status: int | None) -> None:
    async def failing(talk: Talk) -> None:
        if status is None:
            talk.reset()
        else:
            talk.reply({"error": {"message": "no"}}, status)

    async def scenario() -> None:
        async with Upstream(failing) as bad, Upstream() as good, lane(bad, good) as gateway:
            answers = [await gateway.post(chat(stream=bool(n % 2))) for n in range(4)]
            assert [answer.status for answer in answers] == [200] * 4
            assert bad.requests
            assert gateway.metric("penstock_retries_total") == len(bad.requests)
            assert all(target.in_flight == 0 for target in gateway.targets)

    run(scenario())


def test_an_upstream_that_went_away_is_not_noticed_by_clients() -> None:
    async def scenario() -> None:
        async with Upstream() as dying, Upstream() as good, lane(dying, good, probe_every=60.0) as gateway:
            for _ in range(4):
                await gateway.post(chat())
            assert len(dying.requests) == len(good.requests) == 2
            await dying.stop()
            assert [(await gateway.post(chat())).status for _ in range(8)] == [200] * 8
            assert len(good.requests) == 10

    run(scenario())


def test_a_stream_that_is_cut_off_before_its_first_event_begins_elsewhere() -> None:
    async def headless(talk: Talk) -> None:
        talk.begin_stream()
        await talk.writer.drain()
        await asyncio.sleep(0.02)
        talk.reset()

    async def scenario() -> None:
        async with Upstream(headless) as bad, Upstream() as good, lane(bad, good) as gateway:
            answers = [await gateway.post(chat(stream=True)) for _ in range(2)]
            assert [answer.events[-1] for answer in answers] == ["[DONE]", "[DONE]"]
            assert bad.requests

    run(scenario())


def test_an_answer_that_is_cut_off_in_the_middle_comes_from_another() -> None:
    async def half(talk: Talk) -> None:
        talk.writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"half": ')
        await talk.writer.drain()
        await asyncio.sleep(0.02)
        talk.reset()

    async def scenario() -> None:
        async with Upstream(half) as bad, Upstream() as good, lane(bad, good) as gateway:
            answers = [await gateway.post(chat()) for _ in range(2)]
            assert [answer.json["id"] for answer in answers] == ["c1", "c1"]

    run(scenario())


async def cut_off(talk: Talk) -> None:
    talk.begin_stream()
    talk.event("one")
    talk.writer.write(b'400\r\ndata: {"torn": ')
    await talk.writer.drain()
    await asyncio.sleep(0.02)
    talk.reset()


def test_a_stream_that_breaks_says_so_and_ends() -> None:
    async def scenario() -> None:
        async with Upstream(cut_off) as upstream, Upstream(cut_off) as other, lane(upstream, other) as gateway:
            answer = await gateway.post(chat(stream=True))
            assert answer.status == 200
            assert '"one"' in answer.events[0]
            assert "torn" not in answer.body.decode()
            assert answer.events[1].startswith('error: {"error":{"message":"The upstream broke off its answer')
            assert len(answer.events) == 2
            assert len(upstream.requests) + len(other.requests) == 1
            async with gateway.openai() as client:
                stream = await client.chat.completions.create(model="m", messages=[], stream=True)
                with pytest.raises(openai.APIError, match="broke off"):
                    async for _ in stream:
                        pass
            assert 'outcome="failed",status="200"} 2.0' in gateway.context.metrics.page().decode()

    run(scenario())


def test_a_stream_that_falls_silent_says_so_and_ends() -> None:
    async def scenario() -> None:
        async with Upstream(two_words_and_then_nothing) as upstream, lane(upstream, idle=0.2) as gateway:
            answer = await gateway.post(chat(stream=True))
            assert answer.events[-1].startswith("error: ")
            assert "upstream_timeout" in answer.events[-1]
            async with asyncio.timeout(1):
                await upstream.left.wait()

    run(scenario())


def test_an_upstream_that_never_answers_is_given_up() -> None:
    async def scenario() -> None:
        async with Upstream(never) as upstream, lane(upstream, first_byte=0.2) as gateway:
            answer = await gateway.post(chat())
            assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
            async with asyncio.timeout(1):
                await upstream.left.wait()

    run(scenario())


def test_an_upstream_that_stalls_is_replaced_by_another_in_time() -> None:
    async def scenario() -> None:
        async with Upstream(never) as stalled, Upstream() as good, lane(stalled, good, first_byte=0.2) as gateway:
            assert [(await gateway.post(chat())).status for _ in range(2)] == [200, 200]

    run(scenario())


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02 no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 80_000,
        b"HTTP/1.1 600 X\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 099 X\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=["no HTTP", "no length", "endless head", "600", "99", "101"],
)
def test_garbage_is_a_bad_gateway(garbage: bytes) -> None:
    async def rubbish(talk: Talk) -> None:
        talk.writer.write(garbage)
        await asyncio.sleep(0.2)

    async def scenario() -> None:
        async with Upstream(rubbish) as upstream, lane(upstream) as gateway:
            answer = await gateway.post(chat())
            assert (answer.status, answer.json["error"]["code"]) == (502, "bad_upstream")

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b'HTTP/1.0 200 OK\r\n\r\n{"choices": [',
        b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {",
    ],
    ids=["HTML", "empty", "204", "cut short", "stream cut short"],
)
def test_what_is_no_answer_comes_from_another(answer: bytes) -> None:
    async def odd(talk: Talk) -> None:
        talk.writer.write(answer)
        await talk.writer.drain()
        talk.writer.close()

    async def scenario() -> None:
        async with (
            Upstream(odd) as one,
            Upstream() as other,
            lane(one, other, placing=placing("round-robin")) as gateway,
        ):
            answers = [await gateway.post(chat()) for _ in range(4)]
            assert {found.json["choices"][0]["message"]["content"] for found in answers} == {"one two three"}
            assert gateway.target(one).counts.failed == len(one.requests) > 0

    run(scenario())


@pytest.mark.parametrize("framed", [True, False])
def test_a_stream_that_ends_before_it_is_over_is_not_taken_for_whole(framed: bool) -> None:
    async def short(talk: Talk) -> None:
        if framed:
            talk.begin_stream()
            talk.event("one")
            talk.writer.write(b"0\r\n\r\n")
        else:
            event = sse({"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": None}]})
            talk.writer.write(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event)
            await talk.writer.drain()
            talk.writer.close()

    async def scenario() -> None:
        async with Upstream(short) as upstream, lane(upstream) as gateway:
            *_, last = (await gateway.post(chat(stream=True))).events
            assert json.loads(last.removeprefix("error: "))["error"]["code"] == "bad_upstream"
            assert gateway.targets[0].counts.failed == 1

    run(scenario())


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [(500, b"<html>", 502), (503, b"<html>", 503), (302, b"", 502), (429, b"later", 429), (418, b"teapot", 418)],
)
def test_errors_that_are_no_json_are_told_in_openais_form(status: int, body: bytes, expected: int) -> None:
    async def failing(talk: Talk) -> None:
        talk.reply(body, status, content_type="text/html")

    async def scenario() -> None:
        async with Upstream(failing) as upstream, lane(upstream) as gateway:
            answer = await gateway.post(chat())
            assert answer.status == expected
            assert answer.json["error"]["message"]

    run(scenario())


def test_a_refused_gateway_key_is_not_the_clients_fault() -> None:
    async def refusing(talk: Talk) -> None:
        talk.reply({"error": {"message": "who are you"}}, 401)

    async def scenario() -> None:
        async with Upstream(refusing) as upstream, lane(upstream, key="sk-wrong") as gateway:
            assert (await gateway.post(chat())).status == 502

    run(scenario())


def test_nobody_there_is_a_503_that_says_when_to_try_again() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            await upstream.stop()
            await until(lambda: not gateway.targets[0].up)
            answer = await gateway.post(chat())
            assert (answer.status, answer.json["error"]["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert (await gateway.get("/health/ready")).status == 503
            await upstream.start()
            await until(lambda: gateway.targets[0].up)
            assert (await gateway.post(chat())).status == 200
            assert (await gateway.get("/health/ready")).status == 200

    run(scenario())


def test_an_upstream_that_is_still_loading_gets_no_requests() -> None:
    async def scenario() -> None:
        async with Upstream(models=()) as upstream, lane(upstream, ready=False) as gateway:
            await asyncio.sleep(0.05)
            assert (await gateway.post(chat())).status == 503
            upstream.models = ("m",)
            await until(lambda: gateway.targets[0].up)
            assert (await gateway.post(chat())).status == 200

    run(scenario())


def test_an_upstream_that_is_silent_to_probes_gets_no_requests() -> None:
    async def scenario() -> None:
        async with Upstream() as stalled, Upstream() as good, lane(stalled, good) as gateway:
            stalled.silent = True
            await until(lambda: not gateway.target(stalled).up)
            assert [(await gateway.post(chat())).status for _ in range(4)] == [200] * 4
            assert stalled.requests == []

    run(scenario())


def test_a_host_that_swallows_packets_is_given_up_while_connecting() -> None:
    async def scenario() -> None:
        # A full backlog of a listener that accepts nobody: further connections get no answer to their SYN.
        with socket.socket() as hole:
            hole.bind(("127.0.0.1", 0))
            hole.listen(0)
            fillers = []
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(hole.getsockname())
                fillers.append(filler)
            url = f"http://127.0.0.1:{hole.getsockname()[1]}"
            async with Upstream() as good, lane(good, models=frozenset({"m"}), connect=0.2) as gateway:
                lost = gateway.passing.targets.add(parse_url(url))
                lost.up = True
                gateway.passing.targets.changed()
                assert [(await gateway.post(chat())).status for _ in range(2)] == [200, 200]
                assert lost.counts.failed >= 1
            for filler in fillers:
                filler.close()

    run(scenario())


def test_a_breaker_opens_and_a_trial_closes_it() -> None:
    async def scenario() -> None:
        fails = True

        async def moody(talk: Talk) -> None:
            if fails:
                talk.reply({"error": {"message": "broken"}}, 500)
            else:
                await obliging(talk)

        async with Upstream(moody) as upstream, lane(upstream, failures=3, pause=0.3) as gateway:
            assert [(await gateway.post(chat())).status for _ in range(5)] == [500, 500, 500, 503, 503]
            assert len(upstream.requests) == 3
            name = gateway.targets[0].name
            assert gateway.metric(f'penstock_upstream_breaker{{upstream="{name}"}}') == 2
            fails = False
            await asyncio.sleep(0.32)
            assert gateway.metric(f'penstock_upstream_breaker{{upstream="{name}"}}') == 1
            assert [(await gateway.post(chat())).status for _ in range(2)] == [200, 200]
            assert gateway.metric(f'penstock_upstream_breaker{{upstream="{name}"}}') == 0
            assert gateway.metric("penstock_breaker_openings_total") == 1

    run(scenario())


def test_retries_have_a_budget() -> None:
    async def failing(talk: Talk) -> None:
        talk.reply({"error": {"message": "busy"}}, 503)

    async def scenario() -> None:
        async with (
            Upstream(failing) as one,
            Upstream(failing) as two,
            lane(one, two, failures=10_000, retry_share=0.0) as gateway,
        ):
            statuses = {(await gateway.post(chat())).status for _ in range(40)}
            assert statuses == {503}
            assert 10 <= gateway.metric("penstock_retries_total") <= 12

    run(scenario())


async def warm_up(gateway: Lane, count: int = 40) -> None:
    """Teach the gateway how long an answer usually takes."""
    for _ in range(count):
        assert (await gateway.post(chat())).status == 200


def test_a_late_first_byte_is_hedged_and_the_loser_cancelled() -> None:
    async def scenario() -> None:
        async with Upstream() as first, Upstream() as second, lane(first, second, hedge=0.5) as gateway:
            await warm_up(gateway)
            first.script = second.script = late = _LateOnce()
            before = len(first.requests) + len(second.requests)
            names = ("penstock_hedges_total", "penstock_hedges_won_total")
            hedges = [gateway.metric(name) for name in names]  # on a busy machine, one may have been late before
            answer = await gateway.post(chat())
            assert answer.status == 200
            assert len(first.requests) + len(second.requests) == before + 2
            async with asyncio.timeout(1):
                await next(one for one in (first, second) if late.slow is one.requests[-1]).left.wait()
            assert [gateway.metric(name) for name in names] == [count + 1 for count in hedges]
            assert all(target.in_flight == 0 for target in gateway.targets)

    run(scenario())


class _LateOnce:
    """The first request waits for ever, the others are answered."""

    def __init__(self) -> None:
        self.slow: Any = None

    async def __call__(self, talk: Talk) -> None:
        if self.slow is None:
            self.slow = talk.request
            await asyncio.sleep(60)
        await obliging(talk)


def test_hedges_have_a_budget() -> None:
    async def slow(talk: Talk) -> None:
        await asyncio.sleep(0.03)
        await obliging(talk)

    async def scenario() -> None:
        async with Upstream() as first, Upstream() as second, lane(first, second, hedge=0.02) as gateway:
            await warm_up(gateway, 50)
            taken = gateway.metric("penstock_hedges_total")
            first.script = second.script = slow
            for _ in range(10):
                await gateway.post(chat())
            assert gateway.metric("penstock_hedges_total") - taken <= 2

    run(scenario())


def test_a_client_that_reads_slowly_does_not_fill_our_memory() -> None:
    async def scenario() -> None:
        written = 0

        async def flood(talk: Talk) -> None:
            nonlocal written
            talk.begin_stream()
            for _ in range(400):
                talk.event("x" * 100_000)
                await talk.writer.drain()
                written += 100_000
            talk.end_stream()

        async with Upstream(flood) as upstream, lane(upstream) as gateway:
            sent = await gateway.send(chat(stream=True))
            await sent.reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.3)
            assert written < 30_000_000
            total = 0
            while data := await sent.reader.read(1 << 20):
                total += len(data)
                if data.endswith(b"0\r\n\r\n"):
                    break
            sent.leave()
            assert total > 40_000_000

    run(scenario())


def test_a_client_that_does_not_read_is_not_the_upstreams_fault() -> None:
    broken_off = asyncio.Event()

    async def flood(talk: Talk) -> None:
        talk.begin_stream()
        try:
            while True:
                talk.event("x" * 100_000)
                await talk.writer.drain()
        finally:
            broken_off.set()

    async def scenario() -> None:
        async with Upstream(flood) as upstream, lane(upstream, idle=0.2) as gateway:
            sent = await gateway.send(chat(stream=True))
            await broken_off.wait()
            assert gateway.metric("penstock_disconnects_total") == 1
            assert gateway.context.in_flight == 0
            assert gateway.targets[0].counts.failed == 0
            sent.leave()

    run(scenario())


def test_draining_refuses_new_requests_and_lets_streams_finish() -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()

        async def paused(talk: Talk) -> None:
            talk.begin_stream()
            talk.event("one")
            await go_on.wait()
            talk.end_stream()

        async with Upstream(paused) as upstream, lane(upstream) as gateway:
            sent = await gateway.send(chat(stream=True))
            await sent.reader.readuntil(b"one")
            gateway.context.draining = True
            for connection in list(gateway.state.connections):
                connection.shutdown()
            refused = await gateway.post(chat())
            assert refused.status == 503
            assert refused.headers["connection"] == "close"
            go_on.set()
            rest = await sent.reader.read()
            sent.leave()
            assert rest.endswith(b"0\r\n\r\n")
            assert b"[DONE]" in rest

    run(scenario())


def test_what_the_drain_timeout_ends_says_so() -> None:
    async def scenario() -> None:
        async with Upstream(two_words_and_then_nothing) as upstream, lane(upstream) as gateway:
            streaming = await gateway.send(chat(stream=True))
            await streaming.reader.readuntil(b" two")
            upstream.script = never
            waiting = await gateway.send(chat())
            await until(lambda: len(upstream.requests) == 2)
            gateway.context.interrupt_all(lambda: errors.unavailable("Closing time."))
            rest = await streaming.reader.readuntil(b"0\r\n\r\n")
            assert b"event: error" in rest
            assert b"Closing time." in rest
            answer = await read_answer(waiting.reader)
            assert answer.status == 503
            streaming.leave()
            waiting.leave()
            assert gateway.targets[0].in_flight == 0

    run(scenario())
