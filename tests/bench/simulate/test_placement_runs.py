"""`bench.simulate.placement_runs`: what counts as good, what the ceiling is, and that nothing is run twice."""

from pathlib import Path
from typing import Any

import pytest

from bench.load.records import Record
from bench.load.workload import Load, Outline
from bench.simulate import placement_runs
from bench.simulate.others import OTHERS
from bench.simulate.placement_runs import (
    Kept,
    Wanted,
    ceiling,
    conversations,
    documents,
    fill,
    find_knee,
    gateway_of,
    is_good,
    is_timely,
    sources,
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
    late = record(**changes)
    late.last = None
    assert is_timely(late) or not good


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


def wanted(**changes: Any) -> Wanted:
    def source(rate: float, requests: int, seed: int) -> Load:
        return chats(f"poisson:{rate}", requests, shared=320)

    known: dict[str, Any] = {
        "machine": MACHINE, "sources": {"chats": source}, "caches": [200_000], "policies": ["held", "Dynamo"],
        "loads": [0.5, 0.9], "workers": 2, "requests": 60,
    }  # fmt: skip
    return Wanted(**{**known, **changes})


def test_what_is_there_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_runs, "_LOOKS", 2)
    path = tmp_path / "runs.jsonl"
    said: list[str] = []
    assert not fill(wanted(), Kept(path), said.append, seconds=-1.0)
    assert not path.exists()
    assert fill(wanted(loads=[0.5]), Kept(path), said.append)
    assert len(said) == len(path.read_bytes().splitlines()) == 3
    kept = Kept(path)
    assert fill(wanted(), kept, said.append)
    assert len(said) == 5 and len(kept.runs) == 4 and len(kept.knees) == 1
    again = Kept(path)
    assert again.runs == kept.runs and again.knees == kept.knees
    assert fill(wanted(), again, said.append) and len(said) == 5
    for run in kept.runs.values():
        one = run.outcome
        assert 0 < one.p50 <= one.p99 and 0 <= one.good <= one.timely <= 1
    (knee,) = kept.knees.values()
    assert knee.rate > 0 and 0 < knee.ceiling < 1
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(ValueError, match="line 6"):
        Kept(path)


@pytest.mark.parametrize("knee", [0.1, 1.3, 3.1, 3.3, 40.0, 120.0])
def test_the_knee_is_found_though_it_lies_beyond_where_it_is_looked_for_first(
    knee: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``knee`` in times what a fleet without caches could read."""
    asked: list[float] = []

    def source(rate: float, requests: int, seed: int) -> Load:
        asked.append(rate)
        return chats(f"poisson:{rate}", requests)

    def found(most: float) -> float:
        monkeypatch.setattr(placement_runs, "keeps_up", lambda *_: asked[-1] <= most)
        return find_knee(case, source, wanted().setting(case), 1)

    ((case, _),) = wanted().cases()
    smallest = found(0.0)
    at = smallest / 0.4 * knee
    assert found(at) == pytest.approx(max(at, smallest), rel=0.075) and found(at) <= max(at, smallest)
    assert found(1e9) < smallest / 0.4 * 3.2 * 8 * 8


def test_more_workers_get_more_requests() -> None:
    ((small, _),) = wanted(workers=4, requests=800).cases()
    ((large, _),) = wanted(workers=16, requests=800).cases()
    assert (small.requests, large.requests) == (800, 1600)


@pytest.mark.parametrize("policy", [*POLICIES, *OTHERS])
def test_every_policy_is_known_by_its_name(policy: str) -> None:
    assert gateway_of(policy)([]) is not None


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'best'"):
        gateway_of("best")
    with pytest.raises(ValueError, match="novels"):
        sources([], ["novels"])
    assert list(sources([Path("a.jsonl")], ["documents", "a"])) == ["documents", "a"]


def test_workloads_are_as_many_requests_as_asked_for() -> None:
    outlines = list(conversations(8.0, 300, 1).outlines())
    assert len(outlines) == 300
    begun = [one.at for one in outlines if one.at is not None]
    assert 60 <= len(begun) <= 100
    assert len(list(documents(8.0, 300, 1).outlines())) == 300
