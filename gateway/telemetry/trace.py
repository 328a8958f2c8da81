"""Which trace is a request part of, and what is it told to whoever gets it next? W3C Trace Context, level 1.

A client's ``traceparent`` is taken over: its trace, and whether that is kept. Without one, or with one that is wrong, a
request begins a trace of its own, and of these a share is kept, by their ids: the same as OpenTelemetry's samplers
``parentbased_traceidratio`` decide, so that everybody who samples a trace by its id comes to the same end.
"""

import re
from collections.abc import Iterable
from random import randbytes
from typing import Final, NamedTuple

import msgspec

Headers = list[tuple[bytes, bytes]]

PARENT: Final = b"traceparent"
STATE: Final = b"tracestate"
NAMES: Final = frozenset({PARENT, STATE})
"""The headers that belong to whoever sends them on."""

# Later versions may have more behind the flags, the first one may not.
_PARENT: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


class Carried(NamedTuple):
    """What came with a request: the ``traceparent`` and the ``tracestate`` that it was sent with; empty without."""

    parent: bytes = b""
    state: bytes = b""


NOTHING: Final = Carried()


class Trace(msgspec.Struct, frozen=True, gc=False):
    """A request's place in a trace, in hex. ``parent_id`` is the client's span; empty where the trace begins here."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    sampled: bool = False
    state: bytes = b""

    @property
    def lines(self) -> bytes:
        """The header lines for whoever gets the request next, with our span as the parent."""
        lines = f"traceparent: 00-{self.trace_id}-{self.span_id}-0{'1' if self.sampled else '0'}\r\n".encode()
        return lines + b"tracestate: %b\r\n" % self.state if self.state else lines

    def onto(self, headers: Headers) -> Headers:
        """The same headers, but with our span as the parent."""
        kept = [header for header in headers if header[0] not in NAMES]
        kept += [(name, value) for name, _, value in (line.partition(b": ") for line in self.lines.splitlines())]
        return kept


NO_TRACE: Final = Trace("", "")
"""Of a request that is part of none."""


def carried(headers: Iterable[tuple[bytes, bytes]]) -> Carried:
    """What a request's headers say of its trace. Several parents are as good as none."""
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if name == PARENT:
            parents.append(value)
        elif name == STATE:
            states.append(value)
    return Carried(parents[0], b",".join(states)) if len(parents) == 1 else NOTHING


class Traces:
    """Gives requests their places in traces.

    Args:
        share: how many of the traces that begin here are kept, from 0 to 1.
    """

    def __init__(self, share: float = 0.0) -> None:
        # Ids in hex are in the order of what they stand for; nothing in hex comes behind g.
        self._bound = f"{round(share * (1 << 64)):016x}" if share < 1 else "g"

    def join(self, carried: Carried) -> Trace:
        """The place of a request that came with ``carried``."""
        if carried is not NOTHING and (taken := _taken_over(carried)) is not None:
            return taken
        drawn = randbytes(24).hex()
        return Trace(drawn[:32], drawn[32:], "", drawn[16:32] < self._bound)


def _taken_over(carried: Carried) -> Trace | None:
    """A place in the client's trace; None where it doesn't say which, or not in a way that is right."""
    found = _PARENT.fullmatch(carried.parent.strip())
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if trace_id == _NO_TRACE or parent_id == _NO_SPAN or (version == b"00" and more):
        return None
    sampled = bool(int(flags, 16) & 1)
    return Trace(trace_id.decode(), randbytes(8).hex(), parent_id.decode(), sampled, carried.state)
