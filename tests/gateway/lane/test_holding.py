"""Requests that wait in the gateway until a target is about to be free."""

import asyncio
from itertools import count
from typing import Any

import pytest

from gateway.lane.holding import Pace
from gateway.lane.precise import Precise
from gateway.wire import errors
from tests.gateway.harness import run
from tests.gateway.lane.harness import Lane, chat, lane, until
from tests.gateway.lane.upstream import Talk, Upstream, obliging

PAGE = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc %s\n"
LONG, SHORT = 20_000, 400
BYTES_PER_SECOND = 100_000
_numbers = count()


class Reading(Upstream):
    """An upstream that reads one prompt at a time, as fast as `BYTES_PER_SECOND`, in the order of their coming."""

    def __init__(self, kv_used: bytes = b"0.5") -> None:
        super().__init__(self._read)
        self.page = PAGE % kv_used
        self.under_way = self.most = 0
        self._turn = asyncio.Lock()

    async def _read(self, talk: Talk) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            async with self._turn:
                await asyncio.sleep(len(talk.request.body) / BYTES_PER_SECOND)
            await obliging(talk)
        finally:
            self.under_way -= 1

    def texts(self) -> list[str]:
        """The first letters of the prompts, in the order of their coming."""
        return [request.json["messages"][0]["content"][:1] for request in self.requests]


async def warm(gateway: Lane, upstream: Upstream) -> None:
    """Let it be known how fast it reads, and that it says how busy it is."""
    await until(lambda: all(target.load is not None for target in gateway.targets))
    for _ in range(2):
        await gateway.post(chat(f"{next(_numbers)} " + "w" * LONG))  # nothing of which is cached
    upstream.requests.clear()


def holding(**more: Any) -> Any:
    return {"placing": Precise(holds=True), "load_every": 0.05, **more}


def held(gateway: Lane) -> float:
    return gateway.metric('penstock_requests_held{model="m"}')


def test_short_prompts_go_first_and_a_target_never_has_more_than_it_must() -> None:
    async def scenario() -> None:
        async with Reading() as upstream, lane(upstream, **holding()) as gateway:
            await warm(gateway, upstream)
            upstream.most = 0
            tasks = [asyncio.create_task(gateway.post(chat(letter * LONG))) for letter in "abcd"]
            await until(lambda: len(upstream.requests) >= 1)
            assert held(gateway) >= 2
            tasks.append(asyncio.create_task(gateway.post(chat("s" * SHORT))))
            assert {(await task).status for task in tasks} == {200}
            assert upstream.texts() == ["a", "s", "b", "c", "d"]
            assert upstream.most <= 3
            assert held(gateway) == 0
            assert gateway.targets[0].backlog == gateway.targets[0].in_flight == gateway.context.queued == 0

    run(scenario())


def test_who_has_waited_for_long_goes_before_shorter_prompts() -> None:
    async def scenario() -> None:
        async with Reading() as upstream, lane(upstream, **holding()) as gateway:
            await warm(gateway, upstream)
            tasks = [asyncio.create_task(gateway.post(chat("a" * LONG)))]
            await until(lambda: len(upstream.requests) >= 1)
            tasks.append(asyncio.create_task(gateway.post(chat("b" * 4200))))
            await asyncio.sleep(0.1)  # worth 0.02 s of work, or 2,000 bytes
            tasks.append(asyncio.create_task(gateway.post(chat("c" * 3800))))
            await asyncio.gather(*tasks)
            assert upstream.texts() == ["a", "b", "c"]

    run(scenario())


def test_two_targets_get_what_they_can_read() -> None:
    async def scenario() -> None:
        async with Reading() as one, Reading() as other, lane(one, other, **holding()) as gateway:
            for upstream in (one, other, one, other):
                for target in gateway.targets:
                    target.foreign = 0.0 if target.address.port == upstream.port else 1e6
                await warm(gateway, upstream)
            for target in gateway.targets:
                target.foreign = 0.0
            one.requests.clear()
            other.requests.clear()
            tasks = [asyncio.create_task(gateway.post(chat(f"{number} {'x' * LONG}"))) for number in range(6)]
            await asyncio.gather(*tasks)
            assert sorted([len(one.requests), len(other.requests)]) == [3, 3]

    run(scenario())


def test_a_client_that_leaves_while_its_request_waits() -> None:
    async def scenario() -> None:
        async with Reading() as upstream, lane(upstream, **holding()) as gateway:
            await warm(gateway, upstream)
            first = asyncio.create_task(gateway.post(chat("a" * LONG)))
            await until(lambda: len(upstream.requests) >= 1)
            sent = await gateway.send(chat("b" * LONG))
            await until(lambda: held(gateway) == 1)
            sent.leave()
            await until(lambda: gateway.context.in_flight == 1)
            assert held(gateway) == 0 and gateway.context.queued == 1
            assert (await first).status == 200
            assert upstream.texts() == ["a"]

    run(scenario())


def test_what_would_wait_for_too_long_is_refused_at_once() -> None:
    async def scenario() -> None:
        async with Reading() as upstream, lane(upstream, **holding(max_wait=1.0)) as gateway:
            await warm(gateway, upstream)
            tasks = [asyncio.create_task(gateway.post(chat(letter * LONG))) for letter in "abcdefghij"]
            done, waiting = await asyncio.wait(tasks, timeout=0.15)
            refused = [task.result() for task in done]
            assert 2 <= len(refused) <= 8
            assert {(one.status, one.json["error"]["code"]) for one in refused} == {(429, "overloaded")}
            assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
            assert 200 in {(await task).status for task in waiting}
            assert gateway.context.queued == 0

    run(scenario())


def test_who_waits_is_told_when_everybody_has_gone_or_the_server_ends() -> None:
    async def scenario() -> None:
        async with Reading() as upstream, lane(upstream, retries=0, **holding()) as gateway:
            await warm(gateway, upstream)
            tasks = [asyncio.create_task(gateway.post(chat(letter * LONG))) for letter in "ab"]
            await until(lambda: len(upstream.requests) >= 1)
            await upstream.stop()
            assert {(await task).status for task in tasks} <= {502, 503}
            await upstream.start()
            await until(lambda: gateway.targets[0].up)
            await warm(gateway, upstream)
            tasks = [asyncio.create_task(gateway.post(chat(letter * LONG))) for letter in "cd"]
            await until(lambda: len(upstream.requests) >= 1)
            gateway.lanes.interrupt_all(lambda: errors.unavailable("It ends."))
            assert [(await task).status for task in tasks] == [503, 503]
            assert held(gateway) == 0

    run(scenario())


def test_nothing_is_held_for_upstreams_that_say_nothing_of_their_load() -> None:
    async def scenario() -> None:
        async with Reading() as upstream, lane(upstream, **holding()) as gateway:
            await warm(gateway, upstream)
            upstream.page = None
            await until(lambda: gateway.targets[0].load is None)
            tasks = [asyncio.create_task(gateway.post(chat(letter * LONG))) for letter in "abcd"]
            await until(lambda: len(upstream.requests) == 4)
            await asyncio.gather(*tasks)

    run(scenario())


def test_a_full_cache_takes_one_at_a_time() -> None:
    async def scenario() -> None:
        async with Reading(b"0.99") as upstream, lane(upstream, **holding()) as gateway:
            await warm(gateway, upstream)
            tasks = [asyncio.create_task(gateway.post(chat("a" * LONG)))]
            await until(lambda: len(upstream.requests) >= 1)
            tasks += [asyncio.create_task(gateway.post(chat(letter * SHORT))) for letter in "bc"]
            await asyncio.gather(*tasks)
            assert upstream.most == 1

    run(scenario())


def test_a_busy_model_keeps_nobody_else_waiting() -> None:
    async def scenario() -> None:
        async with Reading() as one, Reading() as other, lane(one, other, **holding()) as gateway:
            one.models = ("m",)
            other.models = ("n",)
            for target in gateway.targets:
                target.models = frozenset(("m" if target.address.port == one.port else "n",))
            gateway.passing.targets.changed()
            await warm(gateway, one)
            tasks = [asyncio.create_task(gateway.post(chat(letter * LONG))) for letter in "abc"]
            await until(lambda: len(one.requests) >= 1)
            found = await gateway.post({**chat("x" * SHORT), "model": "n"})
            assert found.status == 200 and not any(task.done() for task in tasks[1:])
            await asyncio.gather(*tasks)

    run(scenario())


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_pace_is_that_of_the_time_with_something_to_read(size: int) -> None:
    pace = Pace()
    for number in range(50):
        pace.read(size, float(number), number + 0.02)
    assert pace.seconds == pytest.approx(0.02 / size)
    for number in range(2000):
        pace.read(size, 50.0 + number, 50.0 + number + 0.04)
    assert pace.seconds == pytest.approx(0.04 / size, rel=0.1)
