"""`bench.simulate.placement_figures`: what counts as good, what the ceiling is, and a whole small table."""

from math import sqrt
from typing import Any

import pytest

from bench.load.records import Record
from bench.load.workload import Load, Outline
from bench.simulate import placement_figures
from bench.simulate.others import OTHERS
from bench.simulate.placement_figures import (
    Case,
    Judge,
    Level,
    Outcome,
    ceiling,
    conversations,
    is_good,
    page,
    ratios,
    run_case,
)
from scheduler.placement import POLICIES
from tests.bench.simulate.loads import MACHINE, chats, listed


def record(**changes: Any) -> Record:
    known: dict[str, Any] = {
        "index": 0, "at": 1.0, "outcome": "ok", "end": 3.0, "sent": 1.0, "first": 2.0, "last": 2.5, "prompt_tokens": 0,
        "output_tokens": 11,
    }  # fmt: skip
    return Record(**{**known, **changes})


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"first": 2.001}, False),
        ({"first": 2.19, "last": 2.5, "prompt_tokens": 1000}, True),
        ({"last": 2.51}, False),
        ({"outcome": "failed"}, False),
        ({"first": None}, False),
        ({"output_tokens": 1, "last": 2.0}, True),
    ],
)
def test_good_is_in_time_for_its_length(changes: dict[str, Any], good: bool) -> None:
    assert is_good(record(**changes)) is good


def test_the_ceiling_is_what_one_endless_cache_finds() -> None:
    load = listed(
        Outline(0, 0.0, 1280, 4, (1,), 640),
        Outline(1, 0.0, 1280, 4, (1,), 640),
        Outline(2, 0.0, 640, 4, (2,), 640),
        Outline(3, 0.0, 640, 4, session=0),
        Outline(4, None, 640, 64, session=0, turn=1),
    )
    # The second finds 640 of 1,280; the second turn finds 640 of 1,284.
    assert ceiling(load) == pytest.approx((640 + 640) / (1280 + 1280 + 640 + 640 + 1284))


def outcome_of(policy: str, seconds: float, good: float) -> Outcome:
    return Outcome(policy, policy in POLICIES, seconds, seconds, seconds, good, 0.5, 1.0)


def test_ratios_are_to_the_best_of_each_case() -> None:
    def case(mine: float, *theirs: float) -> Case:
        outcomes = [outcome_of("held", mine, 0.9)]
        outcomes += [outcome_of(f"other {place}", seconds, 0.6) for place, seconds in enumerate(theirs)]
        return Case("a", 1, 8, 10, 0, 1.0, 0.5, [Level(0.9, outcomes)])

    p99, mean, good = ratios([case(1.0, 2.0, 4.0), case(3.0, 7.0, 3.0)], 0.9, "held")
    assert p99 == mean == pytest.approx(sqrt(0.5))
    assert good == pytest.approx(1.5)


def test_a_small_table_has_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    def source(rate: float, requests: int, seed: int) -> Load:
        return chats(f"poisson:{rate}", requests, shared=320)

    monkeypatch.setattr(placement_figures, "_LOOKS", 2)
    judge = Judge(machine=MACHINE, workers=2, requests=100, loads=(0.9,))
    said: list[str] = []
    case = run_case(judge, "chats", source, "scarce", said.append)
    assert [one.policy for one in case.levels[0].outcomes] == [*POLICIES, *OTHERS]
    assert all(0 < one.p50 <= one.p99 and 0 <= one.good <= 1 for one in case.levels[0].outcomes)
    assert 0 < case.ceiling < 1 and len(said) == 1 + len(POLICIES) + len(OTHERS)
    text = page(MACHINE, [case], "ours")
    assert all(f"| {name} |" in text for name in OTHERS) and all(f"**{name}**" in text for name in POLICIES)


def test_conversations_are_as_many_requests_as_asked_for() -> None:
    outlines = list(conversations(8.0, 300, 1).outlines())
    assert len(outlines) == 300
    begun = [one.at for one in outlines if one.at is not None]
    assert 60 <= len(begun) <= 100
