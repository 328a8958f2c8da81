import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from bench.load.client import Answer, Api, Client, History, message, parse_headers, with_key
from bench.load.http import parse_url
from bench.load.records import Ask, Record
from tests.bench.load.stub import Plan, Stub

CHAT = [{"role": "user", "content": "hello"}]


def an_ask(prompt: Any = CHAT, **more: Any) -> Ask:
    return Ask(index=0, prompt=prompt, prompt_tokens=3, output_tokens=4, **more)


def answered(plan: Plan, prompt: Any = CHAT, timeout: float = 10.0, **api: Any) -> Record:
    with Stub(lambda body: plan) as stub:

        async def ask() -> Record:
            client = Client(Api(url=stub.url, model="stub", **api), parse_url(stub.url), timeout)
            try:
                return (await client.ask(an_ask(prompt), client.now())).record
            finally:
                client.close()

        return asyncio.run(ask())


def chunk(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_a_whole_answer() -> None:
    record = answered(Plan(chunks=(1, 1, 1), cached=5))
    assert (record.outcome, record.status, record.error) == ("ok", 200, "")
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (7, 5, 3)
    assert record.gap_tokens == [1, 1]
    assert record.sent is not None
    assert record.first is not None
    assert record.last is not None
    assert record.at <= record.sent <= record.first <= record.last <= record.end
    assert sum(record.gaps) == pytest.approx(record.last - record.first, abs=1e-5)


@pytest.mark.parametrize("prompt", [CHAT, "a text", [1, 2, 3]])
@pytest.mark.parametrize("says", ["token_ids", "logprobs", "usage"])
def test_a_chunk_says_how_many_tokens_it_has(says: Any, prompt: Any) -> None:
    record = answered(Plan(chunks=(1, 2, 4), says=says), prompt)
    assert (record.output_tokens, record.gap_tokens) == (7, [2, 4])


def test_where_chunks_say_nothing_the_usage_in_the_end_is_spread_over_them() -> None:
    assert answered(Plan(chunks=(2, 2, 2))).gap_tokens == [2, 2]
    uneven = answered(Plan(chunks=(1, 1, 1), hidden=1))
    assert (uneven.output_tokens, uneven.gap_tokens) == (4, [1, 2])


def test_without_usage_a_chunk_is_a_token() -> None:
    record = answered(Plan(chunks=(2, 2, 2), usage=False))
    assert (record.output_tokens, record.gap_tokens, record.prompt_tokens) == (3, [1, 1], 3)


def test_tokens_that_never_show_came_with_the_end() -> None:
    record = answered(Plan(chunks=(), hidden=5))
    assert (record.output_tokens, record.gaps) == (5, [])
    assert record.first is not None


@pytest.mark.parametrize(
    ("plan", "outcome", "error"),
    [
        (Plan(status=429), "refused", "HTTP 429: not now"),
        (Plan(status=503), "refused", "HTTP 503: not now"),
        (Plan(status=500), "failed", "HTTP 500: not now"),
        (Plan(status=404), "failed", "HTTP 404: not now"),
        (Plan(ends="error"), "failed", "the engine fell over"),
        (Plan(ends="early"), "disconnected", "the stream ended early"),
        (Plan(ends="cut"), "disconnected", "the connection ended within the stream"),
        (Plan(ends="finish"), "ok", ""),
    ],
)
def test_how_an_answer_ended(plan: Plan, outcome: str, error: str) -> None:
    record = answered(plan)
    assert (record.outcome, record.error) == (outcome, error)


def test_what_is_no_json_is_a_failure() -> None:
    record = answered(Plan(ends="garbage"))
    assert record.outcome == "failed"
    assert "a chunk that isn't one" in record.error


def test_what_came_before_an_error_is_kept() -> None:
    record = answered(Plan(chunks=(1, 1), ends="error"))
    assert record.first is not None
    assert record.output_tokens == 2


def test_a_timeout_counts_from_when_the_request_was_due() -> None:
    record = answered(Plan(ends="never"), timeout=0.3)
    assert (record.outcome, record.error) == ("timeout", "no end after 0.3 s")
    assert record.latency >= 0.3


def test_nobody_listens() -> None:
    with Stub() as stub:
        url = stub.url

    async def ask() -> Record:
        client = Client(Api(url=url, model="stub"), parse_url(url))
        return (await client.ask(an_ask(), client.now())).record

    record = asyncio.run(ask())
    assert (record.outcome, record.sent) == ("disconnected", None)
    assert "no connection to 127.0.0.1" in record.error
    assert record.delay is not None


def test_connections_are_kept_and_one_that_was_closed_meanwhile_is_replaced() -> None:
    async def three(stub: Stub) -> list[str]:
        client = Client(Api(url=stub.url, model="stub"), parse_url(stub.url))
        outcomes: list[str] = []
        for _ in range(3):
            outcomes.append((await client.ask(an_ask(), client.now())).record.outcome)
            await asyncio.sleep(0)
        client.close()
        return outcomes

    with Stub() as stub:
        assert asyncio.run(three(stub)) == ["ok"] * 3
        assert stub.counts.connections == 1
    with Stub(hangs_up=True) as stub:
        assert asyncio.run(three(stub)) == ["ok"] * 3
        assert stub.counts.connections == 3


def test_every_byte_may_come_alone_and_lines_may_end_as_they_like() -> None:
    for newline in ("\n", "\r\n"):
        record = answered(Plan(chunks=(1, 2), says="token_ids", newline=newline, split=1))
        assert (record.outcome, record.output_tokens, record.gap_tokens) == ("ok", 3, [2])


def test_reasoning_and_tool_calls_are_tokens_and_empty_text_is_not() -> None:
    answer = Answer(keep_text=True)
    answer.feed(chunk(delta={"role": "assistant", "content": ""}), 1.0)
    answer.feed(chunk(delta={"reasoning_content": "hm"}), 2.0)
    answer.feed(chunk(delta={"reasoning": "hm"}), 3.0)
    answer.feed(chunk(delta={"tool_calls": [{"index": 0}]}), 4.0)
    answer.feed(b": a comment\n\n" + chunk(delta={"content": "yes"}), 5.0)
    assert answer.times == [2.0, 3.0, 4.0, 5.0]
    assert answer.text == ["yes"]


def body_of(ask: Ask, history: History | None = None, **api: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Api(url="", model="m", **api).body(ask, history))
    return found


def test_what_is_sent() -> None:
    body = body_of(an_ask())
    assert body == {
        "model": "m", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.0,
        "ignore_eos": True, "min_tokens": 4, "return_token_ids": True, "messages": CHAT,
    }  # fmt: skip
    plain = body_of(an_ask("a text"), extensions=False, extra={"temperature": None, "max_tokens": 9, "seed": 1})
    assert plain == {
        "model": "m", "max_tokens": 9, "stream": True, "stream_options": {"include_usage": True}, "seed": 1,
        "prompt": "a text",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        (CHAT, CHAT, [*CHAT, {"role": "assistant", "content": "hi"}, *CHAT]),
        ("Q ", " Q", "Q hi Q"),
        ([1, 2], [3], [1, 2, 3]),
    ],
)
def test_a_conversation_goes_on_from_its_answers(first: Any, second: Any, whole: Any) -> None:
    history = History()
    history.add(an_ask(first), "hi")
    assert history.prompt(an_ask(second, turn=1)) == whole


def test_headers_and_the_key() -> None:
    headers = with_key(parse_headers(["X-Tenant: a:b"]), "secret")
    assert headers == {"X-Tenant": "a:b", "Authorization": "Bearer secret"}
    with Stub() as stub:
        client = Client(Api(url=stub.url, model="stub", headers=headers), parse_url(stub.url))

        async def ask() -> None:
            await client.ask(an_ask([1, 2]), 0.0)
            client.close()

        asyncio.run(ask())
        assert stub.counts.heads[0].startswith("POST /v1/completions HTTP/1.1\r\n")
        assert "\r\nx-tenant: a:b\r\nauthorization: Bearer secret\r\n" in stub.counts.heads[0]
    with pytest.raises(ValueError, match="'X-Tenant' is no header: write NAME: VALUE"):
        parse_headers(["X-Tenant"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'{"message": "no", "code": 3}', "no"),
        (b"<h1>no</h1>\n  really", "<h1>no</h1> really"),
        (b'{"error": {"code": 3}}', '{"error": {"code": 3}}'),
        (b"x" * 1000, "x" * 159 + "…"),
    ],
)
def test_the_message_of_an_error(body: bytes, said: str) -> None:
    assert message(body) == said


def test_an_answer_that_is_no_stream_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(writer: asyncio.StreamWriter, *_: Any) -> Any:
        data = b'{"choices": []}'
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        )
        return asyncio.sleep(0, result=True)

    stream: Callable[..., Any] = lambda self, writer, *rest: whole(writer)  # noqa: E731
    monkeypatch.setattr(Stub, "_stream", stream)
    record = answered(Plan())
    assert record.outcome == "failed"
    assert record.error.startswith("no event stream, but application/json")
