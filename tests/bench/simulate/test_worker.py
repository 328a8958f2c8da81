"""`bench.simulate.worker`: one worker does what production's scheduler would do, and when."""

from dataclasses import replace

import msgspec
import pytest

from bench.load.workload import Outline
from bench.simulate.machines import Machine, find
from bench.simulate.worker import Setting
from scheduler.config import SchedulerConfig
from scheduler.steptime import Work
from tests.bench.simulate.loads import MACHINE, chats, listed, simulate


def test_one_request_takes_its_steps() -> None:
    """100 tokens of prefill, then four more tokens, a step each."""
    records, extras, _ = simulate(listed(Outline(0, 2.0, 100, 5)))
    (record,) = records
    assert record.first == pytest.approx(2.0 + 0.01 + 100e-4)
    assert record.gaps == pytest.approx([0.0101] * 4)
    assert record.end == record.last == pytest.approx(2.02 + 4 * 0.0101)
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (100, 5, 0)
    assert extras.steps == 5


@pytest.mark.parametrize("ahead", [False, True])
def test_every_request_gets_its_tokens_in_order(ahead: bool) -> None:
    machine = msgspec.structs.replace(MACHINE, ahead=ahead, kv_tokens=2000)
    load = chats(requests=80, rate="poisson:40", output=60)
    records, extras, _ = simulate(load, Setting(machine=machine, config=SchedulerConfig(lookahead=False)))
    assert [record.output_tokens for record in records] == [one.output_tokens for one in load.outlines()]
    assert [record.prompt_tokens for record in records] == [one.input_tokens for one in load.outlines()]
    assert all(record.first and record.at < record.first and min(record.gaps) > 0 for record in records)
    assert extras.preemptions > 0, "the cache is too small for all of them"


def test_looking_ahead_makes_a_newcomer_wait_for_the_step_that_is_planned() -> None:
    """It comes while a step runs. Then the next step is planned already where the machine computes on its own."""
    loads = listed(Outline(0, 0.0, 16, 50), Outline(1, 0.105, 16, 1))
    first = []
    for ahead in (False, True):
        records, _, _ = simulate(loads, Setting(machine=msgspec.structs.replace(MACHINE, ahead=ahead)))
        first.append(records[1].first or 0.0)
    assert first[1] - first[0] == pytest.approx(0.0101, abs=1e-3)


def test_lengths_can_be_hidden_from_the_scheduler() -> None:
    records, _, _ = simulate(chats(requests=20), Setting(machine=MACHINE, max_tokens=500))
    assert {record.output_tokens for record in records} == {12}
    assert {record.asked_tokens for record in records} == {500}


def test_without_a_prefix_cache_nothing_is_found() -> None:
    load = chats(requests=30, shared=320)
    found = [
        simulate(load, Setting(machine=MACHINE, config=SchedulerConfig(prefix_cache=cache)))[1].hit_rate
        for cache in (True, False)
    ]
    assert found[0] > 0.3 and found[1] == 0


def test_jitter_keeps_the_mean() -> None:
    load = listed(Outline(0, 0.0, 10, 3000))
    machine = msgspec.structs.replace(MACHINE, jitter=0.4)
    records, _, _ = simulate(load, Setting(machine=machine))
    gaps = records[0].gaps
    assert sum(gaps) / len(gaps) == pytest.approx(0.0101, rel=0.03)
    assert max(gaps) > 1.5 * min(gaps)


def test_what_the_scheduler_learns_is_the_machine() -> None:
    machine = replace(Setting(machine=MACHINE)).machine
    _, _, fleet = simulate(chats(requests=200), Setting(machine=machine))
    work = Work(200, 3000, 20_000, 8)
    assert fleet.workers[0].scheduler.steptime.predict(work) == pytest.approx(machine.seconds(work), rel=0.05)


def test_what_can_never_fit_fails() -> None:
    small = Machine(name="small", step=0.01, token=1e-4, context=0.0, pair=0.0, request=0.0, kv_tokens=160)
    load = listed(Outline(0, 0.0, 500, 5), Outline(1, 1.0, 50, 5), Outline(2, 2.0, 2000, 5))
    records, _, _ = simulate(load, Setting(machine=small, max_len=1000))
    assert [record.outcome for record in records] == ["failed", "ok", "failed"]
    assert "the worker holds 160" in records[0].error and "context of 1000" in records[2].error


def test_named_machines_serve() -> None:
    records, _, _ = simulate(chats(requests=40), Setting(machine=find("h100/llama-3.1-8b")))
    assert len(records) == 40 and max(record.ttft or 9 for record in records) < 0.5
