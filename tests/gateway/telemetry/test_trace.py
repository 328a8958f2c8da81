"""W3C trace context: what is taken over, what begins anew, and what goes on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lane.heads import RequestHead
from gateway.telemetry.trace import NOTHING, Carried, Trace, Traces, carried

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"

hex_digits = st.text("0123456789abcdef", min_size=32, max_size=32)


@given(hex_digits, hex_digits, st.integers(0, 255), st.integers(0, 254))
def test_a_right_parent_is_taken_over(trace_id: str, span: str, flags: int, version: int) -> None:
    parent_id = span[:16]
    said = f"{version:02x}-{trace_id}-{parent_id}-{flags:02x}".encode()
    trace = Traces(0.5).join(Carried(said, b"a=b"))
    if set(trace_id) == {"0"} or set(parent_id) == {"0"}:
        assert trace.parent_id == "" and trace.state == b""
    else:
        assert (trace.trace_id, trace.parent_id, trace.state) == (trace_id, parent_id, b"a=b")
        assert trace.sampled == bool(flags & 1)
        assert trace.span_id != parent_id


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "00",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-zz",
        f"00_{TRACE}_{PARENT}_01",
        f"01-{TRACE}-{PARENT}-01more",
    ],
)
def test_a_wrong_parent_begins_a_new_trace(wrong: str) -> None:
    trace = Traces(1).join(Carried(wrong.encode(), b"a=b"))
    assert trace.trace_id != TRACE and trace.parent_id == "" and trace.state == b"" and trace.sampled


def test_later_versions_may_have_more() -> None:
    trace = Traces().join(Carried(f"01-{TRACE}-{PARENT}-01-more".encode()))
    assert (trace.trace_id, trace.sampled) == (TRACE, True)


def test_as_many_are_kept_as_were_asked_for() -> None:
    for share in (0.0, 0.25, 1.0):
        traces = Traces(share)
        kept = sum(traces.join(NOTHING).sampled for _ in range(4000))
        assert abs(kept / 4000 - share) <= (0.05 if 0 < share < 1 else 0)


def test_the_share_is_one_of_ids_as_opentelemetry_has_it() -> None:
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    sampler, traces = TraceIdRatioBased(0.3), Traces(0.3)
    for _ in range(500):
        trace = traces.join(NOTHING)
        found = sampler.should_sample(None, int(trace.trace_id, 16), "x").decision
        assert trace.sampled == (found is Decision.RECORD_AND_SAMPLE)


def test_ids_are_whole_and_none_comes_twice() -> None:
    traces = Traces()
    found = [traces.join(NOTHING) for _ in range(1000)]
    assert all(len(one.trace_id) == 32 and len(one.span_id) == 16 for one in found)
    assert len({one.trace_id for one in found}) == len({one.span_id for one in found}) == 1000


def test_what_goes_on() -> None:
    trace = Trace(TRACE, PARENT, "ab" * 8, True, b"a=b")
    assert trace.lines == f"traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=b\r\n".encode()
    assert Trace(TRACE, PARENT).lines == f"traceparent: 00-{TRACE}-{PARENT}-00\r\n".encode()
    headers = [(b"traceparent", b"x"), (b"host", b"h"), (b"tracestate", b"y")]
    assert trace.onto(headers) == [
        (b"host", b"h"),
        (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()),
        (b"tracestate", b"a=b"),
    ]


def test_several_states_are_one_list_and_several_parents_are_none() -> None:
    parent = (b"traceparent", b"p")
    assert carried([parent, (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]) == Carried(b"p", b"a=1,b=2")
    assert carried([parent, parent]) == NOTHING == carried([(b"tracestate", b"a=1")])


def test_a_head_keeps_the_clients_lines_apart() -> None:
    headers = [(b"accept", b"*/*"), (b"traceparent", b"p"), (b"tracestate", b"s")]
    head = RequestHead("/v1/completions", headers, keep_alive=True, chunked=True)
    assert (head.lines, head.trace) == (b"accept: */*\r\n", b"traceparent: p\r\ntracestate: s\r\n")
    assert head.carried == Carried(b"p", b"s")
