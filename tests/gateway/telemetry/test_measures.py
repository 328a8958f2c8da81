"""Records as the GenAI conventions' metrics."""

from typing import Any

from flywheel.record import VERSION, Record, Timing
from gateway.telemetry.measures import DURATION, FIRST_TOKEN, MEASURES, PER_TOKEN, TOKENS, Measure, Measures


def record(**fields: Any) -> Record:
    usual: dict[str, Any] = {"outcome": "ok", "status": 200, "operation_name": "chat", "model": "m", "stream": True}
    return Record(VERSION, "r1", 0, **(usual | fields))


def points(measures: Measures, measure: Measure) -> dict[str, tuple[int, float]]:
    return {
        " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in attributes.items()): (found.count, found.total)
        for attributes, found in measures.read(measure)
    }


def test_what_is_counted_of_a_stream() -> None:
    measures = Measures()
    timing = Timing(0.0, 0.0, 0.5, 2.5, 3.0)
    measures.count(record(timing=timing, input_tokens=10, output_tokens=5))
    measures.count(record(timing=timing, input_tokens=20, output_tokens=1))
    common = "name=chat name=penstock model=m"
    assert points(measures, DURATION) == {common: (2, 6.0)}
    assert points(measures, FIRST_TOKEN) == {common: (2, 1.0)}
    assert points(measures, PER_TOKEN) == {common: (1, 0.5)}
    assert points(measures, TOKENS) == {f"{common} type=input": (2, 30.0), f"{common} type=output": (2, 6.0)}
    ((_, found),) = measures.read(DURATION)
    assert [bound for bound, count in zip(found.bounds, found.counts, strict=False) if count] == [5.12]


def test_what_says_nothing_of_a_first_token() -> None:
    measures = Measures()
    timing = Timing(0.0, 0.0, 0.5, 2.5, 3.0)
    measures.count(record(timing=timing, output_tokens=5, stream=False))
    measures.count(record(timing=timing, output_tokens=5, outcome="failed", status=500))
    measures.count(record(timing=Timing(ended=1.0), outcome="disconnected", status=499))
    measures.count(record())
    assert not points(measures, FIRST_TOKEN) and not points(measures, PER_TOKEN)
    common = "name=chat name=penstock model=m"
    assert points(measures, DURATION) == {
        common: (1, 3.0), f"{common} type=500": (1, 3.0), f"{common} type=disconnected": (1, 1.0),
    }  # fmt: skip


def test_attributes_are_bounded_whatever_clients_and_upstreams_say() -> None:
    measures = Measures()
    for number in range(100):
        measures.count(
            record(
                model="", request_model=f"made-up-{number}", outcome="failed", status=502, error_type=f"odd-{number}",
                user=f"u{number}", timing=Timing(ended=1.0), input_tokens=1, response_model=f"x{number}",
            )
        )  # fmt: skip
    assert sum(len(points(measures, measure)) for measure in MEASURES) == 2
    assert points(measures, DURATION) == {"name=chat name=penstock type=502": (100, 100.0)}


def test_buckets_are_the_conventions() -> None:
    assert TOKENS.bounds[:3] == (1, 4, 16) and TOKENS.bounds[-1] == 67108864 and len(TOKENS.bounds) == 14
    assert all(list(measure.bounds) == sorted(set(measure.bounds)) for measure in MEASURES)
