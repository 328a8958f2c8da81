"""What is asked of an endpoint, and what is noted of each request?

All times are seconds from the beginning of the run, on one clock. A request's latency counts from ``at``, when it was
to be sent, and not from when it was: otherwise a server that stalls would hide the queue that it made (coordinated
omission).
"""

from collections.abc import Iterator
from typing import Literal, Protocol

import msgspec

Outcome = Literal["ok", "refused", "failed", "timeout", "disconnected"]
"""``refused``: the endpoint said that it is too busy (429, 503). ``failed``: any other error, also within a stream.
``timeout``: ours. ``disconnected``: no connection, or one that ended early."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request to come.

    ``at`` is when it is to be sent; None in a closed loop, where it follows another's end. ``prompt`` is a text, token
    ids (both for /v1/completions) or chat messages; its length in tokens is ``prompt_tokens``, as the workload counts
    them. ``session`` and ``turn`` number conversations: turn n is not sent before n - 1 has been answered, and
    ``after`` seconds (think time) later; the answer goes into the messages. ``group`` names a shared prefix, or a kind
    of traffic, for reports.
    """

    index: int
    prompt: str | list[int] | list[dict[str, str]]
    prompt_tokens: int
    output_tokens: int
    at: float | None = None
    session: int | None = None
    turn: int = 0
    after: float = 0.0
    group: str = ""


class Workload(Protocol):
    """Something to ask. Asked again, it says the same: all randomness is seeded."""

    @property
    def title(self) -> str:
        """What it is, in a few words."""

    def asks(self) -> Iterator[Ask]:
        """The requests in the order in which they are to be sent; those of an open loop by ``at``."""


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of one request; a line of JSON in a run's file.

    ``at`` is the intended start (in a closed loop: the actual one), ``started`` when we took it up, ``sent`` when the
    request's last byte was written, ``first`` and ``last`` when the first and last tokens came, ``end`` when all was
    over. ``gaps`` are the seconds between consecutive chunks with tokens, ``gap_tokens`` how many tokens each chunk
    after the first brought: several in one chunk are several, that came together. ``prompt_tokens``, ``cached_tokens``
    and ``output_tokens`` are the endpoint's own count (``usage``) where it gives one, ``asked_tokens`` what was asked
    for.
    """

    index: int
    at: float
    outcome: Outcome
    end: float
    sent: float | None = None
    first: float | None = None
    last: float | None = None
    gaps: list[float] = msgspec.field(default_factory=list)
    gap_tokens: list[int] = msgspec.field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    asked_tokens: int = 0
    status: int = 0
    error: str = ""
    session: int | None = None
    group: str = ""
    started: float | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds from the intended start to the first token."""
        return None if self.first is None else self.first - self.at

    @property
    def latency(self) -> float:
        """Seconds from the intended start to the end."""
        return self.end - self.at

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first, in the mean; None with fewer than two tokens."""
        if self.first is None or self.last is None or self.output_tokens < 2:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)

    @property
    def delay(self) -> float | None:
        """How late we were ourselves in taking it up, in seconds: making a connection is the endpoint's time, too."""
        began = self.sent if self.started is None else self.started
        return None if began is None else began - self.at


class RunInfo(msgspec.Struct, kw_only=True):
    """What a run was: the first line of its file. ``kind``: against a real endpoint, or a simulator."""

    title: str
    kind: Literal["run", "simulation"]
    date: str
    target: str
    model: str
    workload: str
    seed: int
    options: dict[str, str]
    machine: dict[str, str]
    versions: dict[str, str]
    duration: float = 0.0
    client_cpu: float = 0.0
    foreign_cpu: float = 0.0


def write_line(line: RunInfo | Record) -> bytes:
    """A line of a run's file."""
    return msgspec.json.encode(line) + b"\n"
