"""Limits of requests that pass through: what they reserve, and what they are counted with at every end."""

import asyncio
from typing import Any

import pytest

from gateway.lane.meter import estimated_prompt, longest_answer
from gateway.lane.scan import skim
from gateway.traffic.keys import Key, Keyring, hash_key
from gateway.traffic.limits.contract import Decided, Unknown, Verdict
from gateway.traffic.limits.counting import LocalStore
from gateway.traffic.limits.limit import Account, Limits, Rate
from tests.gateway.harness import run
from tests.gateway.lane.harness import Lane, chat, lane, until
from tests.gateway.lane.upstream import Talk, Upstream

KEY = {"authorization": "Bearer sk"}
HOUR = Rate(10_000, 3600)
USED = 'penstock_key_tokens_total{key="team"}'
PROMPT = estimated_prompt(skim(b'{"model":"m","messages":[{"role": "user", "content": "hi"}]}'))


def limit(gateway: Lane, **limits: Any) -> None:
    gateway.context.keys = Keyring([(hash_key(b"sk"), Key(id="team", limits=Limits(**limits)))])


def remaining(gateway: Lane) -> int:
    """Tokens that are neither used nor held now."""
    verdict = gateway.context.limits.store.reserve((Account("team", Limits(tokens=HOUR)),), 0, print)
    assert verdict is not None and not isinstance(verdict, Unknown)
    assert verdict.tokens is not None
    return verdict.tokens.remaining


@pytest.mark.parametrize("fields", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_answers_say_what_is_left_and_count_with_their_usage(fields: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            limit(gateway, requests=Rate(10, 3600), tokens=HOUR)
            answer = await gateway.post(chat(max_tokens=20, **fields), **KEY)
            assert answer.status == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "10"
            assert answer.headers["x-ratelimit-remaining-requests"] == "9"
            assert answer.headers["x-ratelimit-reset-requests"] == "6m0s"
            assert answer.headers["x-ratelimit-remaining-tokens"] == str(10_000 - PROMPT - 20)
            await until(lambda: remaining(gateway) == 10_000 - 10)
            assert gateway.metric(USED) == 10
            assert "authorization" not in upstream.requests[0].headers

    run(scenario())


def test_a_stream_that_says_no_usage_counts_with_its_events() -> None:
    async def scripted(talk: Talk) -> None:
        talk.begin_stream()
        for _ in range(7):
            talk.chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
        talk.end_stream()

    async def scenario() -> None:
        async with Upstream(scripted) as upstream, lane(upstream) as gateway:
            limit(gateway, tokens=HOUR)
            assert (await gateway.post(chat(stream=True), **KEY)).status == 200
            await until(lambda: gateway.metric(USED) == PROMPT + 7)

    run(scenario())


def test_who_exceeds_a_limit_is_told_in_openais_way_and_no_upstream_hears_of_it() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            limit(gateway, requests=Rate(1, 3600))
            assert (await gateway.post(chat(), **KEY)).status == 200
            refused = await gateway.post(chat(), **KEY)
            assert refused.status == 429
            assert (refused.json["error"]["code"], refused.json["error"]["type"]) == ("rate_limit_exceeded", "requests")
            assert 3590 <= int(refused.headers["retry-after"]) <= 3600
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert len(upstream.requests) == 1
            assert gateway.metric('penstock_key_refused_total{key="team",limit="requests"}') == 1
            message = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
            refused = await gateway.post(message, "/v1/messages", **KEY)
            assert refused.json["error"]["type"] == "rate_limit_error"

    run(scenario())


def test_a_client_that_leaves_has_used_what_was_done_for_it() -> None:
    go_on = asyncio.Event()

    async def scripted(talk: Talk) -> None:
        if b"stream" in talk.request.body:
            talk.begin_stream()
            for _ in range(5):
                talk.chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
        await go_on.wait()

    async def scenario() -> None:
        async with Upstream(scripted) as upstream, lane(upstream) as gateway:
            limit(gateway, concurrent=1, tokens=HOUR)
            sent = await gateway.send(chat(max_tokens=20), **KEY)
            await until(lambda: upstream.requests)
            assert (await gateway.post(chat(), **KEY)).status == 429
            sent.leave()
            await until(lambda: gateway.context.in_flight == 0)
            assert gateway.metric(USED) == PROMPT + 20  # nobody can say how far its answer was
            sent = await gateway.send(chat(max_tokens=20, stream=True), **KEY)
            for _ in range(5):
                await sent.reader.readuntil(b"}]}\n\n")
            sent.leave()
            await until(lambda: gateway.context.in_flight == 0)
            assert gateway.metric(USED) == PROMPT + 20 + PROMPT + 3
            assert remaining(gateway) == 10_000 - 2 * PROMPT - 23
            go_on.set()

    run(scenario())


def test_what_upstreams_failed_at_counts_nothing() -> None:
    async def scripted(talk: Talk) -> None:
        talk.reply(b'{"error":{"message":"no"}}', status=400 if len(talk.request.body) % 2 else 500)

    async def scenario() -> None:
        async with Upstream(scripted) as upstream, lane(upstream) as gateway:
            limit(gateway, concurrent=1, tokens=HOUR)
            for text in ("a", "ab"):
                answer = await gateway.post(chat(text), **KEY)
                assert answer.status in (400, 500)
                assert "x-ratelimit-limit-tokens" in answer.headers
            assert gateway.metric('penstock_key_requests_total{key="team"}') == 2
            await until(lambda: remaining(gateway) == 10_000)
        async with lane("http://127.0.0.1:9", ready=False) as gateway:
            limit(gateway, concurrent=1, tokens=HOUR)
            for _ in range(2):
                assert (await gateway.post(chat(), **KEY)).status == 503
            assert remaining(gateway) == 10_000

    run(scenario())


class Slow(LocalStore):
    """A store that decides when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Any] = []

    def reserve(self, accounts: tuple[Account, ...], tokens: int, decided: Decided) -> Verdict | None:
        self.waiting.append((accounts, tokens, decided))
        return None

    def decide(self) -> None:
        for accounts, tokens, decided in self.waiting:
            verdict = super().reserve(accounts, tokens, decided)
            assert verdict is not None
            decided(verdict)
        self.waiting.clear()


def test_a_verdict_may_take_a_while_and_nobody_may_wait_for_it_any_more() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            limit(gateway, concurrent=1)
            store = gateway.context.limits.store = Slow()
            first, second = await gateway.send(chat(), **KEY), await gateway.send(chat(), **KEY)
            await until(lambda: len(store.waiting) == 2)
            second.leave()
            await until(lambda: gateway.context.in_flight == 1)
            store.decide()
            assert (await first.answer()).status == 200
            third = await gateway.send(chat(), **KEY)
            await until(lambda: store.waiting)
            upstream.requests.clear()
            gateway.lanes.interrupt_all(lambda: _unavailable())
            assert (await third.answer()).status == 503
            store.decide()
            assert upstream.requests == []
            fourth = await gateway.send(chat(), **KEY)
            await until(lambda: store.waiting)
            store.decide()
            assert (await fourth.answer()).status == 200  # nothing is held of those that nobody waited for

    run(scenario())


def _unavailable() -> Any:
    from gateway.wire import errors

    return errors.unavailable("The server is shutting down.")


def test_keys_without_limits_have_no_headers() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            limit(gateway)
            answer = await gateway.post(chat(), **KEY)
            assert not any(name.startswith("x-ratelimit") for name in answer.headers)
            assert gateway.metric(USED) == 0

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ("", 1024),
        (',"max_tokens":5', 5),
        (',"max_tokens":5,"max_completion_tokens":7', 7),
        (',"max_output_tokens":9', 9),
        (',"max_tokens":5,"n":3', 15),
        (',"max_tokens":"x","n":null', 1024),
        (',"max_tokens":true,"n":-1', 1024),
    ],
)
def test_the_longest_answer_is_what_the_request_says(fields: str, most: int) -> None:
    assert longest_answer("/v1/chat/completions", f'{{"model":"m"{fields}}}'.encode()) == most


def test_embeddings_have_no_answer() -> None:
    assert longest_answer("/v1/embeddings", b'{"max_tokens":5}') == 0
    assert estimated_prompt(skim(b'{"model":"m","input":"' + b"x" * 398 + b'"}')) == 101
