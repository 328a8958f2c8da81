"""Where requests go: fingerprints, caches, load, and the fleet's policies by name."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.upstream.address import parse_url
from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.options import UpstreamOptions
from gateway.fleet.upstream.target import Target
from gateway.lane.fingerprints import PIECE_ENDS, fingerprints
from gateway.lane.placer import placing
from gateway.lane.placing import CacheAware, Placing, Prompt
from scheduler.placement import POLICIES
from tests.gateway.harness import run
from tests.gateway.lane.harness import chat, lane, until
from tests.gateway.lane.upstream import Talk, Upstream, obliging

TEXT = random.Random(1).randbytes(200_000)


def prints(text: bytes, seed: int = 0) -> list[int]:
    return [int(one) for one in fingerprints(text, seed)]


@given(st.integers(0, 200_000), st.integers(0, 200_000))
def test_beginnings_agree_exactly_as_far_as_the_texts_do(size: int, change: int) -> None:
    text = TEXT[:size]
    found = prints(text)
    assert len(found) == sum(end <= size for end in PIECE_ENDS)
    assert 0 not in found
    if change < size:
        other = bytearray(text)
        other[change] ^= 0x80
        changed = prints(bytes(other))
        for end, one, two in zip(PIECE_ENDS, found, changed, strict=False):
            assert (one == two) == (end <= change)


def test_different_models_share_nothing_and_hashes_look_random() -> None:
    assert not set(prints(TEXT, 1)) & set(prints(TEXT, 2))
    many = [prints(TEXT[:8_000] + bytes([0] * 7 + [a]) + bytes([0] * 7 + [b]) + TEXT[8_016:61_000])[-1]
            for a in range(64) for b in range(64)]  # fmt: skip
    assert len(set(many)) == 4096
    assert len({one & 0xFFF for one in many}) > 2200  # 4096 balls in as many bins leave 63 % of them filled


class Fleet:
    """Targets without sockets."""

    def __init__(self, count: int, policy: Placing | None = None) -> None:
        self.targets = [Target(parse_url(f"http://t{n}:80"), UpstreamOptions(slow_start=10.0)) for n in range(count)]
        self.placing = policy or CacheAware()
        for target in self.targets:
            self.placing.added(target)

    def send(self, text: bytes, session: str = "", now: float = 1.0) -> Connection:
        prompt = Prompt(len(text), fingerprints(text), session)
        target = self.placing.choose(self.targets, prompt, now)
        connection = Connection(target)
        target.in_flight += 1
        self.placing.sent(connection, prompt)
        return connection

    def end(self, connection: Connection) -> None:
        self.placing.answered(connection)
        self.placing.ended(connection)
        connection.target.in_flight -= 1


def conversation(number: int, size: int = 8000) -> bytes:
    return random.Random(number).randbytes(size)


def test_a_conversation_goes_back_to_where_it_was() -> None:
    fleet = Fleet(4)
    first = {}
    for number in range(12):
        connection = fleet.send(conversation(number))
        first[number] = connection.target
        fleet.end(connection)
    assert len(set(first.values())) == 4
    for number in range(12):
        connection = fleet.send(conversation(number) + b"and one turn more" * 20)
        assert connection.target is first[number]
        fleet.end(connection)


def test_one_prefix_for_all_does_not_melt_one_target() -> None:
    fleet = Fleet(4)
    shared = conversation(0, 4000)
    under_way = [fleet.send(shared + conversation(number, 2000)) for number in range(1, 81)]
    share = [sum(connection.target is target for connection in under_way) for target in fleet.targets]
    assert max(share) <= 40
    assert min(share) >= 8
    for connection in under_way:
        fleet.end(connection)
    assert all(target.backlog == 0 for target in fleet.targets)


def test_what_ends_without_an_answer_is_no_longer_counted() -> None:
    fleet = Fleet(2)
    connection = fleet.send(conversation(1))
    assert connection.target.backlog >= 8000
    fleet.placing.ended(connection)
    assert connection.target.backlog == 0


def test_a_target_in_its_slow_start_gets_less() -> None:
    fleet = Fleet(2)
    fleet.targets[0].breaker.returned(0.0)
    under_way = [fleet.send(conversation(number, 1000), now=1.0) for number in range(44)]
    assert sum(connection.target is fleet.targets[0] for connection in under_way) <= 8


def test_a_target_that_others_keep_busy_gets_less_as_soon_as_it_is_known() -> None:
    fleet = Fleet(2)
    for number in range(10):
        fleet.end(fleet.send(conversation(number, 600), now=1.0))
    fleet.targets[0].foreign = 100.0
    under_way = [fleet.send(conversation(number, 1000), now=2.0) for number in range(10, 30)]
    assert all(connection.target is fleet.targets[1] for connection in under_way)
    fleet.targets[0].foreign = 0.0
    later = [fleet.send(conversation(number, 1000), now=3.0) for number in range(30, 48)]
    assert all(connection.target is fleet.targets[0] for connection in later)


def test_who_has_it_cached_and_nothing_to_do_takes_turns() -> None:
    fleet = Fleet(4)
    text = conversation(1, 4000)
    for target in fleet.targets:  # each of them has it: it was the only one there
        prompt = Prompt(len(text), fingerprints(text), "")
        assert fleet.placing.choose([target], prompt, 1.0) is target
        connection = Connection(target)
        fleet.placing.sent(connection, prompt)
        fleet.placing.answered(connection)
        fleet.placing.ended(connection)
    chosen = []
    for _ in range(8):
        connection = fleet.send(text)
        chosen.append(connection.target)
        assert connection.ticket < len(text)
        fleet.end(connection)
    assert all(chosen.count(target) == 2 for target in fleet.targets)


def test_targets_come_and_go() -> None:
    fleet = Fleet(70)
    for number in range(140):
        fleet.end(fleet.send(conversation(number, 600)))
    for target in fleet.targets[:40]:
        fleet.placing.removed(target)
    fleet.targets = fleet.targets[40:]
    for number in range(140):
        fleet.end(fleet.send(conversation(number, 600)))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_places_and_accounts(policy: str) -> None:
    fleet = Fleet(4, placing(policy))
    under_way: list[Connection] = []
    for number in range(200):
        under_way.append(fleet.send(conversation(number % 20, 600), session=str(number % 20), now=10.0 + number / 100))
        if number % 3 == 2:
            fleet.end(under_way.pop(0))
    share = {target.name: 0 for target in fleet.targets}
    for connection in under_way:
        share[connection.target.name] += 1
    assert sum(share.values()) == len(under_way)
    if policy in ("held", "immediate", "round-robin", "two-choices"):
        assert min(share.values()) > 0
    for connection in under_way:
        fleet.end(connection)


def test_a_session_stays_where_it_is() -> None:
    fleet = Fleet(4, placing("session"))
    where = {session: {fleet.send(b"x", session=session).target.name for _ in range(5)} for session in "abcdefgh"}
    assert all(len(targets) == 1 for targets in where.values())
    assert len(set.union(*where.values())) > 1


@pytest.mark.parametrize("policy", ["held", "prefix-load", "round-robin"])
def test_policies_work_through_the_lane_while_targets_die(policy: str) -> None:
    async def flaky(talk: Talk) -> None:
        if random.random() < 0.3:
            talk.reset()
        else:
            await asyncio.sleep(0)
            await obliging(talk)

    async def scenario() -> None:
        async with (
            Upstream(flaky) as first,
            Upstream() as second,
            Upstream() as third,
            lane(first, second, third, placing=placing(policy), failures=10_000, retry_share=1.0) as gateway,
        ):
            answers = await asyncio.gather(*(gateway.post(chat("x" * 50 * n, stream=bool(n % 2))) for n in range(60)))
            assert [answer.status for answer in answers] == [200] * 60
            await until(lambda: all(target.in_flight == 0 for target in gateway.targets))
            assert all(target.backlog == 0 for target in gateway.targets)

    run(scenario())
