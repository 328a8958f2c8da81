"""As many requests of a batch are tried as its key's limits let in."""

import asyncio
import contextlib
import math

from gateway.batches import pace
from gateway.batches.pace import Pace
from tests.gateway.harness import run


async def entered(one: Pace, count: int) -> int:
    """How many of so many requests may be tried at once."""
    for number in range(count):
        try:
            await asyncio.wait_for(one.enter(), 0.01)
        except TimeoutError:
            return number
    return count


def test_without_limits_there_is_no_pace() -> None:
    async def scenario() -> None:
        one = Pace()
        assert await entered(one, 1000) == 1000 and one.busy
        for _ in range(1000):
            one.speed_up()
            one.leave()
        assert not one.busy

    run(scenario())


def test_a_limit_halves_what_is_tried_once_a_round_and_answers_allow_more() -> None:
    async def scenario() -> None:
        now = 0.0
        one = Pace(lambda: now)
        assert await entered(one, 16) == 16
        for _ in range(16):
            one.slow_down(5.0)
            one.leave()
        assert await entered(one, 1) == 0  # until the limit says that there is more
        now = 5.0 * 1.1
        assert await entered(one, 20) == 8
        for _ in range(10):
            one.speed_up()
        one.leave()
        assert await entered(one, 20) == 2
        for _ in range(9):  # down to one at a time, which is tried for ever
            one.slow_down(0.5)
            one.leave()
            now += 1.0
        assert await entered(one, 5) == 1

    run(scenario())


def test_nobody_waits_for_an_hour_without_looking() -> None:
    one = Pace(lambda: 0.0)
    one.slow_down(math.inf)
    assert one._until <= 1.1 * pace._LONGEST


def test_who_waits_goes_on_when_one_leaves() -> None:
    async def scenario() -> None:
        one = Pace()
        await one.enter()
        one.slow_down(0.0)
        waiting = asyncio.create_task(one.enter())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        one.leave()
        await asyncio.wait_for(waiting, 5)
        leaving = asyncio.create_task(one.left())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(leaving), 0.01)
        one.leave()
        await leaving

    run(scenario())
