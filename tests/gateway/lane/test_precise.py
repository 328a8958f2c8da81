"""Requests go where their prompts are cached, by the targets' own word: real sockets, with ZeroMQ's beside them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from engine.events import KvEventPublisher
from gateway.lane.precise import Precise
from scheduler.blocks import AllBlocksCleared, BlockStored, chain_hashes, root_hash, short_hash
from tests.gateway.fleet.test_kv_events import _lose, publisher
from tests.gateway.harness import run
from tests.gateway.lane.harness import Lane, chat, lane, until
from tests.gateway.lane.upstream import Talk, Upstream, obliging

BLOCK = 4


def tokens_of(text: str) -> list[int]:
    return list(text.encode())


class Telling(Upstream):
    """An upstream with a tokenizer (bytes) that renders prompts, and with KV events.

    ``renders``: it makes tokens of prompts at all; ``tokenizes``: where vLLM does it by default.
    """

    def __init__(self, publisher: KvEventPublisher, replay: bool = True) -> None:
        super().__init__(self._talk)
        self.publisher = publisher
        self.replay = replay
        self.renders = True
        self.tokenizes = True
        self.found = 0

    @property
    def source(self) -> str:
        replay = f" replay={self.publisher.replay_endpoint}" if self.replay else ""
        return f"{self.url} kv={self.publisher.endpoint}{replay}"

    @property
    def answered(self) -> int:
        return sum("/v1/chat/completions " in request.line for request in self.requests)

    def event(self, text: str) -> BlockStored:
        """It has this text's blocks cached."""
        tokens = tokens_of(text)
        hashes = [short_hash(digest) for digest in chain_hashes(tokens, BLOCK, root_hash("", ""))]
        return BlockStored(hashes, None, tokens[: len(hashes) * BLOCK], BLOCK, "")

    async def _talk(self, talk: Talk) -> None:
        if "/tokenize" in talk.request.line:
            if self.tokenizes and self.renders:
                talk.reply({"count": 1, "tokens": tokens_of(talk.request.json["messages"][0]["content"])})
            else:
                talk.reply({}, 404)
            return
        if "/render" in talk.request.line:
            if not self.renders:
                talk.reply({}, 404)
                return
            talk.reply({"token_ids": tokens_of(talk.request.json["messages"][0]["content"])})
            return
        usage = {"prompt_tokens": 40, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": self.found}}
        message = {"role": "assistant", "content": "yes"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        talk.reply({"id": "c", "model": "m", "choices": [choice], "usage": usage})


@contextlib.asynccontextmanager
async def two(replay: bool = True) -> AsyncIterator[tuple[Telling, Telling, Lane]]:
    """Two upstreams whose events are heard, and the gateway."""
    async with (
        publisher() as first,
        publisher() as second,
        Telling(first, replay) as one,
        Telling(second, replay) as other,
        lane(one.source, other.source, placing=Precise()) as gateway,
    ):
        for upstream in (one, other):
            target = gateway.target(upstream)
            assert target.follower is not None
            while not target.follower.blocks:
                upstream.publisher.publish([upstream.event("none")])
                await asyncio.sleep(0.01)
        yield one, other, gateway


def believed(gateway: Lane, upstream: Upstream) -> float:
    name = gateway.target(upstream).name
    return gateway.metric(f'penstock_upstream_believed_cached_tokens_total{{upstream="{name}"}}')


PROMPT = "What a prompt this is, of forty tokens.."


@pytest.mark.parametrize("tokenizes", [True, False])
def test_a_prompt_goes_where_it_is_cached_and_what_was_believed_is_counted(tokenizes: bool) -> None:
    async def scenario() -> None:
        async with two() as (one, other, gateway):
            one.tokenizes = other.tokenizes = tokenizes
            other.publisher.publish([other.event(PROMPT)])
            await until(lambda: _blocks(gateway, other) == 11)
            other.found = 36
            for _ in range(4):
                assert (await gateway.post(chat(PROMPT))).status == 200
            assert (one.answered, other.answered) == (0, 4)
            # The last token is always computed, and so is its block.
            assert believed(gateway, other) == 4 * 36
            name = gateway.target(other).name
            assert gateway.metric(f'penstock_upstream_found_cached_tokens_total{{upstream="{name}"}}') == 4 * 36
            # Now the other way round.
            other.publisher.publish([AllBlocksCleared()])
            one.publisher.publish([one.event(PROMPT)])
            await until(lambda: _blocks(gateway, one) == 11 and not _blocks(gateway, other))
            await asyncio.sleep(1.05)  # what was expected to be left in the other's cache wasn't confirmed
            for _ in range(4):
                await gateway.post(chat(PROMPT))
            assert (one.answered, other.answered) == (4, 4)

    run(scenario())


def test_who_has_the_last_place_in_the_queue_keeps_it_while_its_prompt_is_read() -> None:
    async def scenario() -> None:
        async with two() as (one, other, gateway):
            gateway.lanes.context.max_queue = 1
            assert (await gateway.post(chat(PROMPT))).status == 200
            assert one.answered + other.answered == 1

    run(scenario())


def test_a_gap_is_replayed_and_one_that_can_not_be_leaves_nothing_believed() -> None:
    async def scenario() -> None:
        async with two() as (_, other, gateway):
            _lose(other.publisher, other.event(PROMPT))
            other.publisher.publish([other.event("more")])
            await until(lambda: _blocks(gateway, other) == 12)
            await gateway.post(chat(PROMPT))
            assert other.answered == 1
        async with two(replay=False) as (_, other, gateway):
            other.publisher.publish([other.event(PROMPT)])
            await until(lambda: _blocks(gateway, other) == 11)
            _lose(other.publisher, other.event("lost"))
            other.publisher.publish([other.event("more")])
            await until(lambda: _blocks(gateway, other) == 1)
            name = gateway.target(other).name
            assert gateway.metric(f'penstock_upstream_kv_losses_total{{upstream="{name}"}}') == 1
            before = believed(gateway, other)
            await gateway.post(chat(PROMPT))
            assert believed(gateway, other) == before

    run(scenario())


def test_what_was_just_placed_is_expected_to_be_cached() -> None:
    async def scenario() -> None:
        async with two() as (one, other, gateway):
            for _ in range(4):
                await gateway.post(chat(PROMPT))
            assert sorted((one.answered, other.answered)) == [0, 4]

    run(scenario())


def test_upstreams_that_render_nothing_get_requests_all_the_same() -> None:
    async def scenario() -> None:
        async with two() as (one, other, gateway):
            one.renders = other.renders = False
            for number in range(6):
                assert (await gateway.post(chat(f"{number} {PROMPT}"))).status == 200
            asked = [request for request in [*one.requests, *other.requests] if "render" in request.line]
            assert 1 <= len(asked) <= 2, "who can't isn't asked again"
            one.script = obliging
            assert (await gateway.post(b'{"model": "m", "messages": 5}')).status == 200

    run(scenario())


def test_a_client_that_leaves_while_its_prompt_is_read() -> None:
    async def scenario() -> None:
        async with two() as (one, other, gateway):
            held = asyncio.Event()

            async def slow(talk: Talk) -> None:
                held.set()
                await asyncio.sleep(30)

            one.script = other.script = slow
            sent = await gateway.send(chat(PROMPT))
            await held.wait()
            sent.leave()
            await until(lambda: gateway.context.in_flight == 0 and gateway.context.queued == 0)
            assert not any(target.in_flight for target in gateway.targets)

    run(scenario())


def test_a_target_that_goes_is_forgotten() -> None:
    async def scenario() -> None:
        async with two() as (one, other, gateway):
            other.publisher.publish([other.event(PROMPT)])
            await until(lambda: _blocks(gateway, other) == 11)
            gateway.passing.targets.remove(gateway.target(other).address)
            await gateway.post(chat(PROMPT))
            assert (one.answered, other.answered) == (1, 0)

    run(scenario())


def _blocks(gateway: Lane, upstream: Upstream) -> int:
    follower = gateway.target(upstream).follower
    return follower.blocks if follower is not None else -1


def test_endpoints_without_prompts_pass() -> None:
    async def scenario() -> None:
        async with two() as (one, other, gateway):
            one.script = other.script = obliging
            body = json.dumps({"model": "m", "input": "text"}).encode()
            assert (await gateway.post(body, "/v1/embeddings")).status == 200
            assert all("embeddings" in request.line for request in [*one.requests, *other.requests])

    run(scenario())
