"""What did a run come to? Percentiles, throughput, errors and goodput, from its records alone.

Latencies count from the intended start. A request that timed out before its first token counts among the first tokens
and the ends with the time it had waited, which is less than the truth, but no request less. Quantiles are read off
histograms, to 0.4 %.
"""

import io
import math
from collections.abc import Iterable
from typing import Final

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.load.driver import add_gaps
from bench.load.histogram import Histogram
from bench.load.records import Record, RunInfo
from gateway.settings import parse_seconds

DELAY_BOUND: Final = 0.01
"""Seconds; a run whose 99th percentile of the schedule delay passes it is invalid."""
_LATENCIES: Final = ("ttft", "itl", "tpot", "latency")
_ERRORS_SHOWN: Final = 8
_GROUPS_SHOWN: Final = 20


class Slo(msgspec.Struct, frozen=True):
    """What a request must keep to be good; seconds, None where nothing is asked."""

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in self.__struct_fields__}
        return ",".join(f"{name}={value * 1000:g}ms" for name, value in parts.items() if value is not None)

    def met(self, record: Record) -> bool:
        """Whether a request was answered, and in time. One token alone has no TPOT to keep."""
        if record.outcome != "ok":
            return False
        late = (
            (self.ttft is not None and (record.ttft is None or record.ttft > self.ttft))
            or (self.tpot is not None and record.tpot is not None and record.tpot > self.tpot)
            or (self.latency is not None and record.latency > self.latency)
        )
        return not late


def parse_slo(text: str) -> Slo:
    """The bounds of ``ttft=500ms,tpot=50ms``; ``latency`` is end to end.

    Raises:
        ValueError: the text is none.
    """
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in Slo.__struct_fields__ or not equals or name in bounds:
            raise ValueError(f"{part.strip()!r} is no bound: write ttft=500ms, tpot=50ms or latency=10s, by commas")
        bounds[name] = parse_seconds(value)
    return Slo(**bounds)


class Quantiles(msgspec.Struct, frozen=True):
    """Of latencies, in seconds; ``count`` is how many there were."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


def quantiles(histogram: Histogram) -> Quantiles | None:
    """Those of a histogram; None of an empty one."""
    if not histogram.total:
        return None
    p50, p90, p99, p999 = histogram.quantiles([0.5, 0.9, 0.99, 0.999])
    return Quantiles(histogram.total, histogram.mean, p50, p90, p99, p999, histogram.high)


class Figures(msgspec.Struct, kw_only=True):
    """Of all requests, or of one group. ``offered`` are all that were asked; tokens as the endpoint counts them."""

    offered: int
    outcomes: dict[str, int]
    errors: dict[str, int]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    good: int | None
    ttft: Quantiles | None
    itl: Quantiles | None
    tpot: Quantiles | None
    latency: Quantiles | None

    @property
    def goodput(self) -> float | None:
        """The share of all requests offered that kept the objectives; None without any."""
        return self.good / self.offered if self.good is not None and self.offered else None


class Summary(Figures, kw_only=True):
    """Of a run. ``duration`` is from the first request's start to the last one's end, in seconds; rates are per second
    of it, except ``offered_rate``, which is over the time in which requests were begun. ``client_cpu`` is in cores,
    ``foreign_cpu`` a share of the machine. ``invalid`` says why the run must not be used; empty if it may.
    """

    title: str
    kind: str
    date: str
    target: str
    model: str
    workload: str
    slo: str
    duration: float
    offered_rate: float | None
    request_rate: float
    good_rate: float | None
    prompt_rate: float
    output_rate: float
    delay: Quantiles | None
    client_cpu: float
    foreign_cpu: float
    interrupted: int
    invalid: str
    groups: dict[str, Figures] = {}
    histograms: dict[str, Histogram] = {}


class _Tally:
    """Counts records of one group."""

    def __init__(self, slo: Slo | None) -> None:
        self.slo = slo
        self.offered = self.prompt = self.cached = self.output = self.good = 0
        self.outcomes: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.histograms = {name: Histogram() for name in _LATENCIES}

    def add(self, record: Record) -> None:
        self.offered += 1
        self.outcomes[record.outcome] = self.outcomes.get(record.outcome, 0) + 1
        self.output += record.output_tokens
        if record.outcome == "ok":
            self.prompt += record.prompt_tokens
            self.cached += record.cached_tokens
            if record.tpot is not None:
                self.histograms["tpot"].add(record.tpot)
        else:
            error = f"{record.outcome}: {record.error}" if record.error else record.outcome
            self.errors[error] = self.errors.get(error, 0) + 1
        timed_out = record.outcome == "timeout"
        if record.ttft is not None or timed_out:
            self.histograms["ttft"].add(record.latency if record.ttft is None else record.ttft)
        if record.outcome == "ok" or timed_out:
            self.histograms["latency"].add(record.latency)
        add_gaps(self.histograms["itl"], record)
        self.good += self.slo is not None and self.slo.met(record)

    def figures(self) -> Figures:
        return Figures(
            offered=self.offered,
            outcomes=self.outcomes,
            errors=dict(sorted(self.errors.items(), key=lambda one: -one[1])),
            prompt_tokens=self.prompt,
            cached_tokens=self.cached,
            output_tokens=self.output,
            good=self.good if self.slo is not None else None,
            **{name: quantiles(histogram) for name, histogram in self.histograms.items()},
        )


def _together(tallies: Iterable[_Tally], slo: Slo | None) -> _Tally:
    whole = _Tally(slo)
    for tally in tallies:
        for name in ("offered", "prompt", "cached", "output", "good"):
            setattr(whole, name, getattr(whole, name) + getattr(tally, name))
        for mine, theirs in ((whole.outcomes, tally.outcomes), (whole.errors, tally.errors)):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count
        for name, histogram in whole.histograms.items():
            histogram.merge([tally.histograms[name]])
    return whole


def summarize(
    info: RunInfo,
    records: Iterable[Record],
    slo: Slo | None = None,
    *,
    bound: float = DELAY_BOUND,
    interrupted: int = 0,
) -> Summary:
    """A run's summary. ``bound`` is the greatest schedule delay (99th percentile, seconds) of a valid run.

    ``interrupted`` requests were under way when the run was stopped, and have no record.
    """
    tallies: dict[str, _Tally] = {}
    delay, begun, ended, first = Histogram(), 0.0, 0.0, math.inf
    for record in records:
        tally = tallies.get(record.group)
        if tally is None:
            tally = tallies[record.group] = _Tally(slo)
        tally.add(record)
        if record.delay is not None:
            delay.add(record.delay)
        first, begun, ended = min(first, record.at), max(begun, record.at), max(ended, record.end)
    whole = _together(tallies.values(), slo)
    duration = max(0.0, ended - first)
    over = 1 / duration if duration else 0.0
    late = delay.quantile(0.99)
    return Summary(
        **{name: getattr(whole.figures(), name) for name in Figures.__struct_fields__},
        title=info.title,
        kind=info.kind,
        date=info.date,
        target=info.target,
        model=info.model,
        workload=info.workload,
        slo=str(slo) if slo is not None else "",
        duration=duration,
        offered_rate=(whole.offered - 1) / (begun - first) if whole.offered > 1 and begun > first else None,
        request_rate=whole.outcomes.get("ok", 0) * over,
        good_rate=whole.good * over if slo is not None else None,
        prompt_rate=whole.prompt * over,
        output_rate=whole.output * over,
        delay=quantiles(delay),
        client_cpu=info.client_cpu,
        foreign_cpu=info.foreign_cpu,
        interrupted=interrupted,
        invalid=_late(late, bound) if late > bound else "",
        groups={name: tally.figures() for name, tally in sorted(tallies.items())} if len(tallies) > 1 else {},
        histograms={**whole.histograms, "delay": delay},
    )


def _late(late: float, bound: float) -> str:
    return (
        f"the client fell behind its schedule: 1 % of the requests went out {late * 1e3:.1f} ms late or more, and "
        f"{bound * 1e3:g} ms are allowed; use more --processes, another machine, or a lower rate"
    )


def render(summary: Summary) -> RenderableType:
    """A summary for a terminal."""
    parts: list[RenderableType] = [_totals(summary), "", _latencies("", summary, summary.delay)]
    for name, figures in list(summary.groups.items())[:_GROUPS_SHOWN]:
        share = "" if figures.goodput is None else f", goodput {figures.goodput:.1%}"
        parts += ["", _latencies(f"{name or '(no group)'}: {figures.offered:,} requests{share}", figures, None)]
    if len(summary.groups) > _GROUPS_SHOWN:
        parts += ["", f"… and {len(summary.groups) - _GROUPS_SHOWN} more groups: all are in summary.json"]
    if summary.errors:
        parts.append("")
        shown = list(summary.errors.items())
        parts += [Text(f"{count:,} x {error}") for error, count in shown[:_ERRORS_SHOWN]]
        if len(shown) > _ERRORS_SHOWN:
            parts.append(f"… and {len(shown) - _ERRORS_SHOWN} other errors")
    if summary.invalid:
        parts += ["", Text(f"INVALID: {summary.invalid}", style="bold red")]
    return Group(*parts)


def _totals(summary: Summary) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    outcomes = ", ".join(f"{count:,} {name}" for name, count in summary.outcomes.items())
    stopped = f", {summary.interrupted:,} interrupted (left out)" if summary.interrupted else ""
    rate = "" if summary.offered_rate is None else f", {summary.offered_rate:,.2f}/s"
    table.add_row("target", Text(f"{summary.target}, {summary.model}"))
    table.add_row("workload", Text(summary.workload))
    table.add_row("offered", f"{summary.offered:,} requests{rate}, in {summary.duration:,.1f} s{stopped}")
    table.add_row("answers", f"{outcomes or 'none'}; {summary.request_rate:,.2f} ok/s")
    if summary.goodput is not None:
        table.add_row(
            "goodput",
            f"{summary.goodput:.1%} of all offered within {summary.slo}; {summary.good_rate:,.2f}/s",
        )
    cached = f", {summary.cached_tokens / summary.prompt_tokens:.1%} cached" if summary.cached_tokens else ""
    table.add_row("input", f"{summary.prompt_tokens:,} tokens{cached}; {summary.prompt_rate:,.0f}/s")
    table.add_row("output", f"{summary.output_tokens:,} tokens; {summary.output_rate:,.0f}/s")
    if summary.kind == "run":
        cpu = f"{summary.client_cpu:.2f} cores; others took {summary.foreign_cpu:.0%} of this machine"
        table.add_row("client CPU", cpu)
    return table


def _latencies(title: str, figures: Figures, delay: Quantiles | None) -> Table:
    table = Table(box=None, pad_edge=False, title=Text(title) if title else None, title_justify="left")
    table.add_column("ms", no_wrap=True)
    for name in ("mean", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [("TTFT", figures.ttft), ("ITL", figures.itl), ("TPOT", figures.tpot), ("end to end", figures.latency)]
    for name, row in [*rows, ("schedule delay", delay)]:
        if row is not None:
            values = (row.mean, row.p50, row.p90, row.p99, row.p999, row.max)
            table.add_row(name, *(f"{value * 1e3:,.2f}" for value in values))
    return table


def as_text(summary: Summary) -> str:
    """A summary as plain text, 100 columns wide at most."""
    file = io.StringIO()
    Console(file=file, width=100, color_system=None, highlight=False).print(render(summary))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def as_json(summary: Summary) -> bytes:
    """A summary as JSON, with the share of goodput, for a file."""
    fields = msgspec.to_builtins(summary)
    return msgspec.json.format(msgspec.json.encode({**fields, "goodput": summary.goodput}), indent=1) + b"\n"
