"""`bench.simulate.fleet`: who comes when, where they go, and that it is the same each time."""

from itertools import pairwise

import msgspec
import pytest

from bench.load.arrivals import parse_arrivals
from bench.load.lengths import fixed
from bench.load.workload import Conversations, Outline
from bench.simulate.fleet import Fleet, Progress
from bench.simulate.policies import PLACEMENTS, RoundRobin
from bench.simulate.worker import Setting
from tests.bench.simulate.loads import MACHINE, chats, listed, simulate


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_all_are_answered_and_the_same_each_time(placement: str) -> None:
    machine = msgspec.structs.replace(MACHINE, jitter=0.2, ahead=True)
    runs = [
        simulate(chats(requests=80, shared=160), Setting(machine=machine), 3, PLACEMENTS[placement]()) for _ in range(2)
    ]
    (records, extras, fleet), (again, extras_again, _) = runs
    assert msgspec.json.encode(records) == msgspec.json.encode(again) and extras == extras_again
    assert [record.index for record in records] == list(range(80))
    assert {record.outcome for record in records} == {"ok"}
    assert [worker.outstanding for worker in fleet.workers] == [worker.unread for worker in fleet.workers] == [0, 0, 0]


def test_another_seed_has_other_jitter() -> None:
    machine = msgspec.structs.replace(MACHINE, jitter=0.2)
    one, other = (simulate(chats(), Setting(machine=machine, seed=seed))[0] for seed in (0, 1))
    assert one != other


def test_totals_are_those_of_the_records() -> None:
    records, extras, fleet = simulate(chats(requests=80, shared=320), workers=2)
    assert extras.prompt_tokens == sum(record.prompt_tokens for record in records)
    assert extras.cached_tokens == sum(record.cached_tokens for record in records)
    assert extras.output_tokens == sum(record.output_tokens for record in records)
    assert extras.hit_rate == extras.cached_tokens / extras.prompt_tokens > 0
    assert extras.seconds == max(record.end for record in records)
    series = fleet.series
    assert sum(series.output_tokens) == extras.output_tokens
    assert len(series.kv_use) == len(series.waiting) >= int(extras.seconds)
    assert 0 < extras.kv_use <= extras.kv_most <= 1


def test_a_later_turn_waits_for_the_answer_and_finds_the_conversation() -> None:
    load = Conversations(
        requests=12,
        arrivals=parse_arrivals("constant:1"),
        turns=fixed(3),
        think=fixed(2),
        input=fixed(100),
        output=fixed(60),
    )
    records, _, _ = simulate(load)
    for first in range(0, 12, 3):
        turns = records[first : first + 3]
        for before, after in pairwise(turns):
            assert after.at == pytest.approx(before.end + 2.0, abs=2e-6)
            assert after.prompt_tokens == before.prompt_tokens + before.output_tokens + 100
            # All full blocks of prompt and answer; the last token of the answer has no KV yet.
            assert after.cached_tokens == (after.prompt_tokens - 101) // 16 * 16


def test_a_closed_loop_keeps_so_many_under_way() -> None:
    records, _, _ = simulate(chats("closed:4", requests=30))
    assert len(records) == 30
    moments = sorted({record.at for record in records})[1:-4]
    for moment in moments:
        assert sum(record.at <= moment < record.end for record in records) == 4


def test_a_closed_loop_ends_with_its_time() -> None:
    outlines = [Outline(index, None, 50, 20) for index in range(10_000)]
    records, _, _ = simulate(listed(*outlines, arrivals="closed:2", duration=3.0))
    assert 5 < len(records) < 100 and max(record.at for record in records) < 3.0


def test_those_who_come_at_once_share_a_step() -> None:
    _, extras, _ = simulate(listed(*(Outline(index, 1.0, 20, 1) for index in range(4))))
    assert extras.steps == 1


def test_progress_is_told() -> None:
    seen: list[Progress] = []
    Fleet(Setting(machine=MACHINE), 1, RoundRobin()).run(chats(requests=20), lambda record: None, seen.append)
    assert seen[-1].begun == seen[-1].ended == 20 and seen[-1].now > 0


def test_a_scheduler_that_stops_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.simulate.worker import SimWorker

    monkeypatch.setattr(SimWorker, "wake", lambda self, now: None)
    with pytest.raises(RuntimeError, match="1 requests are left"):
        simulate(listed(Outline(0, 0.0, 20, 1)))
