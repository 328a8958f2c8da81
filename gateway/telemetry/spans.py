"""What does a request look like in a trace? Its record becomes one span, with a child for each of its phases.

``queue`` is the time until it was let in (its body, its key's limits, its tokens), ``place`` until a worker or upstream
got it, ``prefill`` until its first token was there, ``decode`` until its last. A phase in which it ended goes on to its
end, so that one sees where a request was that failed. What is said in a request or its answer, and who said it, never
goes into a span. Needs OpenTelemetry's SDK, which is an extra: import this only where telemetry is on.
"""

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from flywheel.record import ATTRIBUTES, Record, Timing
from gateway.telemetry.measures import PROVIDER, error_type
from gateway.telemetry.trace import Trace

Value = str | int | float | tuple[str, ...]

_OF_RECORDS: Final = (
    *("operation_name", "request_model", "response_model", "response_id", "session", "input_tokens", "cached_tokens"),
    *("output_tokens", "finish_reasons"),
)
_OF_SAMPLING: Final = (
    *("temperature", "top_p", "top_k", "max_tokens", "frequency_penalty", "presence_penalty", "seed", "choice_count"),
    "stop_sequences",
)
_OURS: Final = ("request_id", "outcome", "variant", "target", "worker", "adapter", "key", "attempts")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


class Phase(NamedTuple):
    """A part of a request's life, in seconds after it came."""

    name: str
    begin: float
    end: float


def phases(timing: Timing) -> Iterator[Phase]:
    """The phases that a request has been through."""
    last = timing.last_token if timing.last_token is not None else timing.first_token
    steps = (("queue", timing.queued), ("place", timing.placed), ("prefill", timing.first_token), ("decode", last))
    ended = timing.ended if timing.ended is not None else max((at for _, at in steps if at is not None), default=0.0)
    begin = 0.0
    for place, (name, at) in enumerate(steps):
        if at is not None:
            yield Phase(name, begin, max(at, begin))
            begin = max(at, begin)
        elif all(later is None for _, later in steps[place:]):
            yield Phase(name, begin, max(ended, begin))  # it ended here
            return


class SpanMaker:
    """Makes spans of records.

    Args:
        resource: who sends them.
        scope: what made them.
    """

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        self._resource = resource
        self._scope = scope

    def spans(self, record: Record, trace: Trace) -> Iterator[ReadableSpan]:
        """The span of a request, and those of its phases."""
        state = TraceState.from_header([trace.state.decode("latin-1")]) if trace.state else None
        trace_id = int(trace.trace_id, 16)
        own = SpanContext(trace_id, int(trace.span_id, 16), False, _SAMPLED, state)
        parent = SpanContext(trace_id, int(trace.parent_id, 16), True, _SAMPLED, state) if trace.parent_id else None
        timing = record.timing or Timing()
        start = record.received * 1000
        yield ReadableSpan(
            f"{record.operation_name} {record.model}".rstrip(),
            context=own,
            parent=parent,
            resource=self._resource,
            attributes=attributes(record),
            kind=SpanKind.SERVER,
            status=_status(record),
            start_time=start,
            end_time=start + _nanoseconds(timing.ended or 0.0),
            instrumentation_scope=self._scope,
        )
        for phase in phases(timing):
            yield ReadableSpan(
                phase.name,
                context=SpanContext(trace_id, random.getrandbits(64) or 1, False, _SAMPLED, state),
                parent=own,
                resource=self._resource,
                start_time=start + _nanoseconds(phase.begin),
                end_time=start + _nanoseconds(phase.end),
                instrumentation_scope=self._scope,
            )


def attributes(record: Record) -> dict[str, Value]:
    """What is said of a request: by the GenAI and HTTP conventions' names, else under ``penstock``."""
    said: dict[str, Value | None] = {ATTRIBUTES[name]: getattr(record, name) for name in _OF_RECORDS}
    if record.sampling is not None:
        said |= {ATTRIBUTES[name]: getattr(record.sampling, name) for name in _OF_SAMPLING}
    said |= {f"penstock.{name}": getattr(record, name) for name in _OURS}
    said["gen_ai.provider.name"] = record.provider_name or PROVIDER
    said["error.type"] = error_type(record)
    said["http.response.status_code"] = record.status
    said["http.route"] = record.endpoint
    return {name: value for name, value in said.items() if value is not None and value not in ("", ())}


def _status(record: Record) -> Status:
    """A server's span is an error only where the server is to blame, as the HTTP conventions have it."""
    if record.outcome != "failed":
        return Status(StatusCode.UNSET)
    return Status(StatusCode.ERROR, record.error_message or None)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
