"""`bench.simulate.gateway`: production's placer in front of simulated workers, with news that come late."""

from collections.abc import Iterator, Sequence

import pytest

from bench.load.records import Record
from bench.load.workload import Outline
from bench.simulate.fleet import Fleet
from bench.simulate.gateway import CHAIN, Gateway, News, Placing, placing
from bench.simulate.worker import Setting, SimRequest, SimWorker
from scheduler.placement import POLICIES, PlacementConfig, Placer
from scheduler.prefix_index import chain_of_digests
from tests.bench.simulate.loads import MACHINE, chats, listed

SETTING = Setting(machine=MACHINE)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_answers_everybody_the_same_way_each_time(policy: str) -> None:
    def once() -> list[tuple[int, float | None]]:
        found: list[tuple[int, float | None]] = []
        fleet = Fleet(SETTING, 3, placing(lambda: Placer(PlacementConfig(policy=policy))))
        fleet.run(chats(requests=40, shared=160), lambda record: found.append((record.index, record.first)))
        return found

    first = once()
    assert sorted(index for index, _ in first) == list(range(40))
    assert all(at is not None for _, at in first)
    assert first == once()


def test_workers_that_say_nothing_are_served_as_well() -> None:
    answered: list[Record] = []
    news = News(exact=False, reports=False, remembered=2000)
    fleet = Fleet(SETTING, 3, placing(Placer, news))
    fleet.run(chats(requests=40, shared=160), answered.append)
    assert len(answered) == 40
    assert isinstance(fleet.gateway, Placing)
    workers = fleet.gateway.placer.workers.values()
    assert all(worker.said.backlog is None and not worker.sent for worker in workers)


def test_a_held_queue_is_in_the_gateway() -> None:
    longest = 0

    class Watched(Placing):
        def decide(self, now: float) -> Iterator[tuple[SimRequest, int | None]]:
            nonlocal longest
            yield from super().decide(now)
            longest = max(longest, self.placer.waiting)

    asked = [Outline(number, 0.0, 2000, 4) for number in range(20)]
    done: list[Record] = []
    fleet = Fleet(SETTING, 2, lambda workers: Watched(Placer(), workers))
    fleet.run(listed(*asked), done.append)
    assert len(done) == 20 and longest >= 14


def test_events_come_late_and_what_was_placed_is_expected_meanwhile() -> None:
    fleet = Fleet(SETTING, 1, placing(lambda: Placer(PlacementConfig(policy="immediate")), News(event_delay=5.0)))
    gateway = fleet.gateway
    assert isinstance(gateway, Placing)
    beliefs = []

    def look(worker: int, now: float, work: object, seconds: float) -> None:
        index = gateway.placer._indexes[CHAIN, True]
        beliefs.append((now, index.held("0"), index.match(blocks).get("0", 0)))

    fleet.workers[0].on_step = look
    blocks = chain_of_digests(SimRequest(SETTING, fleet._prompts, Outline(0, 0.0, 1600, 4), 0.0).hashes)
    fleet.run(listed(Outline(0, 0.0, 1600, 700), Outline(1, 9.0, 160, 4)), lambda record: None)
    assert [known for now, known, _ in beliefs if now < 5.0] == [0] * sum(now < 5.0 for now, *_ in beliefs)
    assert all(believed == 100 for now, _, believed in beliefs if now < 1.0)
    # The first token came after 0.2 s; a second later nothing is expected any more, until the events are there.
    assert any(believed == 0 for now, _, believed in beliefs if 1.5 < now < 5.0) or beliefs[-1][1] >= 100
    assert beliefs[-1][1] >= 100


def test_what_a_gateway_refuses_has_a_record() -> None:
    class Refusing(Gateway):
        def __init__(self) -> None:
            self.new: list[SimRequest] = []

        def arrived(self, request: SimRequest, now: float) -> None:
            self.new.append(request)

        def stepped(self, worker: SimWorker, done: Sequence[SimRequest], now: float) -> None:
            pass

        def decide(self, now: float) -> Iterator[tuple[SimRequest, int | None]]:
            while self.new:
                request = self.new.pop()
                yield request, None if request.uid % 2 else 0

        def next_look(self, now: float) -> float | None:
            return None

    records: list[Record] = []
    Fleet(SETTING, 1, lambda workers: Refusing()).run(chats(requests=10), records.append)
    assert sorted(record.index for record in records if record.status == 429) == [1, 3, 5, 7, 9]
    assert sum(record.outcome == "ok" for record in records) == 5
