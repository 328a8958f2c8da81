import random

import msgspec
import pytest

from bench.load.records import Outcome, Record, RunInfo
from bench.load.summary import Slo, Summary, as_json, as_text, parse_slo, summarize

INFO = RunInfo(
    title="a run", kind="run", date="2025-01-01T00:00:00+00:00", target="http://a", model="m", workload="constant 10/s",
    seed=0, options={}, machine={}, versions={}, client_cpu=0.5, foreign_cpu=0.25,
)  # fmt: skip


def a_record(
    index: int, ttft: float | None = 0.1, gap: float = 0.02, outcome: Outcome = "ok", **more: object
) -> Record:
    at = index / 10
    record = Record(index=index, at=at, started=at, outcome=outcome, end=at + 1.0)
    if ttft is not None:
        record.first, record.gaps, record.gap_tokens = at + ttft, [gap] * 3, [1] * 3
        record.last, record.output_tokens = at + ttft + 3 * gap, 4
        record.prompt_tokens = 10
    for name, value in more.items():
        setattr(record, name, value)
    return record


def test_percentiles_are_those_of_the_records() -> None:
    rng = random.Random(1)
    records = [a_record(i, rng.uniform(0.01, 1.0)) for i in range(1000)]
    found = summarize(INFO, records)
    true = sorted(record.ttft for record in records if record.ttft is not None)
    assert found.ttft is not None
    for share, value in ((500, found.ttft.p50), (900, found.ttft.p90), (990, found.ttft.p99), (999, found.ttft.p999)):
        assert value == pytest.approx(true[share - 1], rel=0.004)
    assert found.ttft.max == true[-1]
    assert found.ttft.mean == pytest.approx(sum(true) / 1000)
    assert found.itl is not None
    assert found.itl.count == 3000
    assert found.itl.p50 == pytest.approx(0.02, rel=0.004)
    assert found.tpot is not None
    assert found.tpot.p50 == pytest.approx(0.02, rel=0.004)
    assert found.latency is not None
    assert found.latency.p50 == pytest.approx(1.0, rel=0.004)


def test_rates_and_totals() -> None:
    records = [a_record(i, cached_tokens=5) for i in range(11)] + [a_record(11, None, outcome="refused")]
    found = summarize(INFO, records)
    assert (found.offered, found.outcomes) == (12, {"ok": 11, "refused": 1})
    assert (found.prompt_tokens, found.cached_tokens, found.output_tokens) == (110, 55, 44)
    assert found.duration == pytest.approx(2.1)
    assert found.offered_rate == pytest.approx(10)
    assert found.request_rate == pytest.approx(11 / 2.1)
    assert found.output_rate == pytest.approx(44 / 2.1)


def test_goodput_counts_everything_that_was_offered() -> None:
    records = [
        a_record(0),
        a_record(1, ttft=0.6),
        a_record(2, gap=0.06),
        a_record(3, None, outcome="refused"),
        a_record(4, outcome="failed"),
        a_record(5, None, outcome="timeout"),
        a_record(6, None),
        a_record(7, output_tokens=1, last=0.8),
    ]
    found = summarize(INFO, records, parse_slo("ttft=500ms,tpot=50ms"))
    assert (found.good, found.goodput) == (2, 2 / 8)
    assert found.good_rate == pytest.approx(2 / found.duration)
    assert summarize(INFO, records, parse_slo("latency=0.9")).good == 0
    assert summarize(INFO, records).goodput is None


def test_a_timeout_counts_with_what_it_waited() -> None:
    found = summarize(INFO, [a_record(0), a_record(1, None, outcome="timeout", end=30.1)])
    assert found.ttft is not None
    assert found.ttft.count == 2
    assert found.ttft.max == pytest.approx(30)
    assert found.latency is not None
    assert found.latency.max == pytest.approx(30)


def test_a_client_that_was_late_makes_the_run_invalid() -> None:
    records = [a_record(i) for i in range(100)]
    assert summarize(INFO, records).invalid == ""
    for record in records[:2]:
        record.started = record.at + 0.02
    found = summarize(INFO, records)
    assert found.invalid.startswith("the client fell behind its schedule: 1 % of the requests went out 20.0 ms late")
    assert "INVALID" in as_text(found)
    assert summarize(INFO, records, bound=0.03).invalid == ""


def test_making_a_connection_is_the_endpoints_time() -> None:
    records = [a_record(i, sent=i / 10 + 5.0) for i in range(100)]
    assert summarize(INFO, records).invalid == ""


def test_groups_stand_beside_the_whole() -> None:
    records = [a_record(i, 0.1 if i % 2 else 0.3, group="b" if i % 2 else "a") for i in range(20)]
    found = summarize(INFO, records, Slo(ttft=0.2))
    assert list(found.groups) == ["a", "b"]
    assert [group.goodput for group in found.groups.values()] == [0.0, 1.0]
    assert found.goodput == 0.5
    text = as_text(found)
    assert "a: 10 requests, goodput 0.0%" in text
    assert "b: 10 requests, goodput 100.0%" in text


def test_errors_are_counted_the_most_frequent_first() -> None:
    records = [a_record(i, None, outcome="failed", error="HTTP 500: x" if i else "[HTTP] 404") for i in range(4)]
    found = summarize(INFO, records)
    assert found.errors == {"failed: HTTP 500: x": 3, "failed: [HTTP] 404": 1}
    assert "3 x failed: HTTP 500: x\n1 x failed: [HTTP] 404" in as_text(found)


def test_text_and_json() -> None:
    records = [a_record(i, cached_tokens=5) for i in range(20)]
    found = summarize(INFO, records, parse_slo("ttft=1.5s"), interrupted=3)
    text = as_text(found)
    assert "goodput     100.0% of all offered within ttft=1500ms" in text
    assert "3 interrupted (left out)" in text
    assert "50.0% cached" in text
    assert max(map(len, text.splitlines())) <= 100
    data = as_json(found)
    assert msgspec.json.decode(data)["goodput"] == 1.0
    assert msgspec.json.decode(data, type=Summary) == found


def test_nothing_at_all() -> None:
    found = summarize(INFO, [], Slo(ttft=1))
    assert (found.offered, found.goodput, found.ttft, found.duration, found.invalid) == (0, None, None, 0.0, "")
    assert "0 requests" in as_text(found)
    assert msgspec.json.decode(as_json(found), type=Summary) == found


@pytest.mark.parametrize("text", ["", "ttft", "itl=5ms", "ttft=1s,ttft=2s", "ttft=fast", "ttft=-1s"])
def test_what_is_no_objective(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_slo(text)
    assert str(parse_slo("tpot=50ms, latency=2")) == "tpot=50ms,latency=2000ms"
