"""How long did requests take and how much did they use, by OpenTelemetry's GenAI metrics? Counted from their records.

A `Measures` costs some bisections a request; whoever sends it somewhere reads it now and then. Names, units and buckets
are those of https://github.com/open-telemetry/semantic-conventions-genai (docs/gen-ai/gen-ai-metrics.md).
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from flywheel.record import Record
from gateway.wire.errors import ERROR_CODES

Attributes = Mapping[str, str]

PROVIDER: Final = "penstock"
"""What requests are answered by where their record has nothing better."""


class Measure(NamedTuple):
    """One of the metrics. ``bounds`` are the upper ends of its buckets."""

    name: str
    unit: str
    help: str
    bounds: tuple[float, ...]


DURATION: Final = Measure(
    "gen_ai.server.request.duration",
    "s",
    "From a request's last byte to the end of its answer.",
    (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
FIRST_TOKEN: Final = Measure(
    "gen_ai.server.time_to_first_token",
    "s",
    "From a request's last byte to the first token of its answer, of streams that came to a good end.",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
PER_TOKEN: Final = Measure(
    "gen_ai.server.time_per_output_token",
    "s",
    "For each token after the first one, of streams that came to a good end.",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
TOKENS: Final = Measure(
    "gen_ai.client.token.usage",
    "{token}",
    "Tokens of a request's prompt and of its answer.",
    tuple(float(4**power) for power in range(14)),
)
MEASURES: Final = (DURATION, FIRST_TOKEN, PER_TOKEN, TOKENS)


class Distribution:
    """A histogram over ``bounds``, with the sum of what was counted."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


class _Kind(NamedTuple):
    """The distributions of requests of one kind, ready to be counted in."""

    duration: Distribution
    first_token: Distribution
    per_token: Distribution
    input: Distribution
    output: Distribution


class Measures:
    """The GenAI metrics of one gateway process.

    Attributes are bounded: operations and error codes are ours to list, models are served names.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[tuple[str, str], ...]], Distribution] = {}
        self._kinds: dict[tuple[str, str, str, str], _Kind] = {}

    def count(self, record: Record) -> None:
        """Count a request that has ended."""
        error = "" if record.outcome == "ok" else error_type(record)
        key = (record.operation_name, record.provider_name, record.model, error)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = self._kind(*key)
        timing = record.timing
        if timing is not None and timing.ended is not None:
            kind.duration.observe(timing.ended)
            first, last = timing.first_token, timing.last_token
            if first is not None and last is not None and record.stream and not error:
                kind.first_token.observe(first)
                if record.output_tokens is not None and record.output_tokens > 1:
                    kind.per_token.observe((last - first) / (record.output_tokens - 1))
        if record.input_tokens is not None:
            kind.input.observe(record.input_tokens)
        if record.output_tokens is not None:
            kind.output.observe(record.output_tokens)

    def read(self, measure: Measure) -> Iterator[tuple[Attributes, Distribution]]:
        """What there is of one metric. May be called in another thread: it may miss what is just being counted."""
        for (name, attributes), found in list(self._found.items()):
            if name == measure.name and found.count:
                yield dict(attributes), found

    def _kind(self, operation: str, provider: str, model: str, error: str) -> _Kind:
        common = {"gen_ai.operation.name": operation, "gen_ai.provider.name": provider or PROVIDER}
        if model:
            common["gen_ai.request.model"] = model
        ended = common | ({"error.type": error} if error else {})
        return _Kind(
            self._distribution(DURATION, ended),
            self._distribution(FIRST_TOKEN, common),
            self._distribution(PER_TOKEN, common),
            self._distribution(TOKENS, common | {"gen_ai.token.type": "input"}),
            self._distribution(TOKENS, common | {"gen_ai.token.type": "output"}),
        )

    def _distribution(self, measure: Measure, attributes: Attributes) -> Distribution:
        return self._found.setdefault((measure.name, tuple(attributes.items())), Distribution(measure.bounds))


def error_type(record: Record) -> str:
    """What kind of error a request ended with; empty where it ended well. Never in an upstream's own words."""
    if record.outcome == "ok":
        return ""
    if record.outcome == "disconnected":
        return "disconnected"
    return record.error_type if record.error_type in ERROR_CODES else str(record.status)
