"""Do two runs differ, figure by figure, by more than chance? What ``penstock bench compare`` says.

Each figure has an interval of its own, and the difference one; a verdict is given only where the difference is shown,
with all figures asked at once (`holm`), so that among twenty the one that chance makes is not taken for a finding. The
two runs count as independent: where they were given the same requests, that makes the intervals wider, not narrower.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from bench.load.columns import Columns, RunFileError, read_run
from bench.load.compare import METRICS
from bench.load.records import RunInfo
from bench.load.statistics import CONFIDENCE, Estimate, difference, holm, percentiles, rate, share
from bench.load.summary import DELAY_BOUND, Slo

Verdict = Literal["faster", "slower", "higher", "lower", "no difference shown", "too little data"]
"""Of B, beside A."""

_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_UNANSWERED: Final = 0.01


class Figure(msgspec.Struct, frozen=True):
    """A value and its interval; ``block``: see `Estimate`."""

    value: float
    low: float
    high: float
    block: float
    blocks: float
    enough: bool


class Row(msgspec.Struct, frozen=True):
    """One figure of both runs. ``difference`` is B's less A's; ``p`` is adjusted for all rows being asked at once."""

    metric: str
    unit: str
    a: Figure
    b: Figure
    difference: Figure
    p: float | None
    verdict: Verdict


class Side(msgspec.Struct, frozen=True):
    """One of the runs. ``invalid`` says why its figures must not be used; empty if they may."""

    path: str
    title: str
    target: str
    date: str
    requests: int
    invalid: str


class Comparison(msgspec.Struct, frozen=True):
    """Two runs side by side; ``warnings`` are what makes them hard to compare."""

    a: Side
    b: Side
    confidence: float
    slo: str
    warnings: list[str]
    rows: list[Row]


class _Notes(msgspec.Struct):
    """What a summary.json says that records don't."""

    invalid: str = ""
    interrupted: int = 0


def compare(a: Path, b: Path, metrics: Sequence[str] = (), slo: Slo | None = None, seed: int = 0) -> Comparison:
    """Compare two runs by their files (or folders). ``metrics`` are some of `METRICS`; none: all.

    Raises:
        RunFileError: one is no run.
    """
    (info_a, columns_a), (info_b, columns_b) = read_run(a), read_run(b)
    notes_a, notes_b = _notes(a, columns_a), _notes(b, columns_b)
    warnings = [*_runs_differ(info_a, info_b), *_troubles("A", columns_a, notes_a), *_troubles("B", columns_b, notes_b)]
    if a.resolve() == b.resolve():
        warnings.insert(0, "A and B are the same run")
    wanted = list(dict.fromkeys(metrics)) or list(METRICS)
    estimates_a = _estimates(columns_a, wanted, slo, np.random.default_rng([seed, 0]))
    estimates_b = _estimates(columns_b, wanted, slo, np.random.default_rng([seed, 1]))
    return Comparison(
        a=_side(a, info_a, columns_a, notes_a),
        b=_side(b, info_b, columns_b, notes_b),
        confidence=CONFIDENCE,
        slo="" if slo is None else str(slo),
        warnings=warnings,
        rows=_rows(estimates_a, estimates_b),
    )


def _rows(a: dict[str, Estimate], b: dict[str, Estimate]) -> list[Row]:
    between = {name: difference(a[name], b[name]) for name in a}
    p_values = holm([one.p_value() if one.enough else math.nan for one in between.values()])
    rows = []
    for (name, one), p in zip(between.items(), p_values, strict=True):
        family = METRICS[name.partition(" ")[0]]
        verdict: Verdict = "too little data"
        if one.enough:
            verdict = "no difference shown"
            if p < 1 - CONFIDENCE:
                verdict = family.less if one.value < 0 else family.more
        adjusted = None if math.isnan(p) else p
        rows.append(Row(name, family.unit, _figure(a[name]), _figure(b[name]), _figure(one), adjusted, verdict))
    return rows


def _figure(estimate: Estimate) -> Figure:
    return Figure(estimate.value, *estimate.interval(), estimate.block, estimate.blocks, estimate.enough)


def _estimates(
    columns: Columns, wanted: Sequence[str], slo: Slo | None, rng: np.random.Generator
) -> dict[str, Estimate]:
    estimates: dict[str, Estimate] = {}
    for name in wanted:
        if name in ("ttft", "itl", "tpot", "latency"):
            estimates.update(_latencies(columns, name, rng))
        elif name != "goodput" or slo is not None:
            estimates[name] = _totals(columns, slo)[name](rng)
    return estimates


def _latencies(columns: Columns, name: str, rng: np.random.Generator) -> Iterator[tuple[str, Estimate]]:
    if name == "itl":
        values, owners = columns.itl()
    else:
        values = getattr(columns, name)
        owners = np.flatnonzero(np.isfinite(values))
        values = values[owners]
    found = percentiles(values, owners, list(_QUANTILES.values()), rng)
    return zip((f"{name} {quantile}" for quantile in _QUANTILES), found, strict=True)


def _totals(columns: Columns, slo: Slo | None) -> dict[str, Callable[[np.random.Generator], Estimate]]:
    ok, ends, seconds = columns.ok, columns.end - columns.begin, columns.duration
    return {
        "requests": lambda rng: rate(ends[ok], np.ones(int(ok.sum())), seconds, rng),
        "output": lambda rng: rate(ends, columns.output.astype(np.float64), seconds, rng),
        "answered": lambda rng: share(ok, rng),
        "goodput": lambda rng: share(columns.good(slo or Slo()), rng),
    }


def _notes(path: Path, columns: Columns) -> _Notes:
    """From the summary beside the records; without one, the records must do."""
    file = (path if path.is_dir() else path.parent) / "summary.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Notes)
    except FileNotFoundError:
        pass
    except msgspec.DecodeError as error:
        raise RunFileError(f"{file} is no summary: {error}") from None
    delays = columns.delay[np.isfinite(columns.delay)]
    late = float(np.quantile(delays, 0.99)) if len(delays) else 0.0
    late_text = f"the client fell behind its schedule: 1 % of the requests went out {late * 1e3:.1f} ms late or more"
    return _Notes(invalid=late_text if late > DELAY_BOUND else "")


def _side(path: Path, info: RunInfo, columns: Columns, notes: _Notes) -> Side:
    return Side(str(path), info.title, info.target, info.date, len(columns), notes.invalid)


def _runs_differ(a: RunInfo, b: RunInfo) -> Iterator[str]:
    """What makes two runs different questions, and so their answers hard to compare."""
    for what, one, other in (
        ("kinds", a.kind, b.kind),
        ("workloads", a.workload, b.workload),
        ("seeds", str(a.seed), str(b.seed)),
        ("models", a.model, b.model),
    ):
        if one != other:
            yield f"the {what} differ: {one} (A), {other} (B)"
    names = [name for name in {**a.options, **b.options} if a.options.get(name) != b.options.get(name)]
    for name in names:
        one, other = (side.options.get(name, "not given") for side in (a, b))
        yield f"the option {name} differs: {one} (A), {other} (B)"
    machines = [name for name in {**a.machine, **b.machine} if a.machine.get(name) != b.machine.get(name)]
    if machines:
        yield f"the machines differ in {', '.join(machines)}"


def _troubles(name: str, columns: Columns, notes: _Notes) -> Iterator[str]:
    if notes.invalid:
        yield f"{name} is INVALID: {notes.invalid}"
    if notes.interrupted:
        yield f"{name} was stopped early, and {notes.interrupted:,} requests under way are left out"
    if not len(columns):
        yield f"{name} has no requests"
    elif (lost := 1 - float(columns.ok.mean())) > _UNANSWERED:
        yield f"{name} left {lost:.1%} of its requests unanswered: its latencies are those of the rest"
