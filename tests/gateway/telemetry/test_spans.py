"""Records as spans."""

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, StatusCode

from flywheel.record import VERSION, Content, Record, Sampling, Timing
from gateway.telemetry.spans import SpanMaker, attributes, phases
from gateway.telemetry.trace import Trace

TRACE = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "11" * 8, True, b"vendor=x")


def record(**fields: Any) -> Record:
    usual: dict[str, Any] = {"outcome": "ok", "status": 200, "operation_name": "chat", "model": "m"}
    return Record(VERSION, "r1", 1_700_000_000_000_000, **(usual | fields))


@pytest.mark.parametrize(
    ("timing", "expected"),
    [
        (
            Timing(0.1, 0.2, 0.5, 1.0, 1.1),
            [("queue", 0, 0.1), ("place", 0.1, 0.2), ("prefill", 0.2, 0.5), ("decode", 0.5, 1.0)],
        ),
        (Timing(0.1, None, 0.5, 1.0, 1.1), [("queue", 0, 0.1), ("prefill", 0.1, 0.5), ("decode", 0.5, 1.0)]),
        (Timing(ended=0.3), [("queue", 0, 0.3)]),
        (Timing(0.1, ended=0.3), [("queue", 0, 0.1), ("place", 0.1, 0.3)]),
        (Timing(0.1, 0.2, ended=0.3), [("queue", 0, 0.1), ("place", 0.1, 0.2), ("prefill", 0.2, 0.3)]),
        (Timing(0.1, 0.2, 0.25, ended=0.3), [("queue", 0, 0.1), ("place", 0.1, 0.2), ("prefill", 0.2, 0.25),
                                             ("decode", 0.25, 0.25)]),
        (Timing(), [("queue", 0, 0)]),
    ],
)  # fmt: skip
def test_phases(timing: Timing, expected: list[tuple[str, float, float]]) -> None:
    assert [tuple(phase) for phase in phases(timing)] == expected


def test_a_request_and_its_phases() -> None:
    maker = SpanMaker(Resource({}), InstrumentationScope("penstock", "1"))
    root, *children = maker.spans(record(timing=Timing(0.1, 0.2, 0.5, 1.0, 1.1)), TRACE)
    assert (root.name, root.kind) == ("chat m", SpanKind.SERVER)
    assert root.context is not None and root.parent is not None and root.parent.is_remote
    assert (f"{root.context.trace_id:032x}", f"{root.context.span_id:016x}") == (TRACE.trace_id, TRACE.span_id)
    assert f"{root.parent.span_id:016x}" == TRACE.parent_id and root.context.trace_state.get("vendor") == "x"
    assert root.start_time == 1_700_000_000_000_000_000 and root.end_time == root.start_time + 1_100_000_000
    assert [child.name for child in children] == ["queue", "place", "prefill", "decode"]
    assert all(child.parent is root.context for child in children)
    assert len({child.context.span_id for child in children if child.context is not None}) == 4


def test_what_is_said_of_a_request_and_what_never_is() -> None:
    told = record(
        user="u1", key="team", tags={"a": "b"}, content=Content("full", b"secret in", b"secret out"), input_tokens=3,
        output_tokens=0, finish_reasons=("stop",), session="s1",
        sampling=Sampling(temperature=0.0, stop_sequences=("x",)),
    )  # fmt: skip
    found = attributes(told)
    assert found["gen_ai.usage.input_tokens"] == 3 and found["gen_ai.usage.output_tokens"] == 0
    assert found["gen_ai.request.temperature"] == 0 and found["gen_ai.request.stop_sequences"] == ("x",)
    assert found["gen_ai.response.finish_reasons"] == ("stop",) and found["gen_ai.conversation.id"] == "s1"
    assert found["penstock.key"] == "team"
    assert "gen_ai.response.model" not in found and "error.type" not in found
    said = str(found)
    assert "secret" not in said and "u1" not in said and "'b'" not in said


@pytest.mark.parametrize(
    ("fields", "code", "error"),
    [
        ({}, StatusCode.UNSET, None),
        ({"outcome": "invalid", "status": 404, "error_type": "model_not_found"}, StatusCode.UNSET, "model_not_found"),
        ({"outcome": "failed", "status": 502, "error_type": "made-up"}, StatusCode.ERROR, "502"),
        ({"outcome": "disconnected", "status": 499}, StatusCode.UNSET, "disconnected"),
    ],
)
def test_how_it_ended(fields: dict[str, Any], code: StatusCode, error: str | None) -> None:
    maker = SpanMaker(Resource({}), InstrumentationScope("penstock"))
    root = next(iter(maker.spans(record(**fields), TRACE)))
    assert root.status.status_code is code
    assert (root.attributes or {}).get("error.type") == error
