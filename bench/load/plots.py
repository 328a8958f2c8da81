"""What does a run look like? Its figures, drawn: latency over time, distributions, load, single requests, caches.

All are made of `Columns`, so a simulation has the same. A plot of a million requests draws some thousand of them, and
says so; lines and the figures in titles are of all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from bench.load.columns import OUTCOMES, Columns, Flags, Floats
from bench.load.drawing import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    RED,
    SKY,
    duration,
    figure_of,
    legend,
    share_axis,
    spread,
    style,
    time_axis,
    time_unit,
)

POINTS: Final = 5000
"""So many requests a plot draws as points at most."""
CLOSE: Final = 120
"""So many requests the closer look at single ones shows at most."""


class Series(msgspec.Struct):
    """What a simulation's series.json has of a fleet over time; see `bench.simulate.series.Series`."""

    interval: float
    prompt_tokens: list[int] = []
    cached_tokens: list[int] = []
    preemptions: list[int] = []
    kv_use: list[float] = []
    kv_most: list[float] = []


class Level(NamedTuple):
    """One rate of a sweep (requests/s): the share of requests that kept the objectives, and TTFT's p99 (seconds)."""

    rate: float
    goodput: float
    held: bool
    ttft_p99: float | None = None


class Plot(NamedTuple):
    """A figure, what its file is called, and what it shows, in words."""

    name: str
    heading: str
    caption: str
    figure: Figure


def plots(columns: Columns, series: Series | None = None) -> Iterator[Plot]:
    """All plots that a run's records, and a simulation's series, have something for."""
    if not len(columns):
        return
    makers: list[Callable[[], Plot | None]] = [
        lambda: latency(columns),
        lambda: distributions(columns),
        lambda: load(columns),
        lambda: requests(columns),
        lambda: caches(columns, series),
    ]
    for make in makers:
        with style():
            made = make()
        if made is not None:
            yield made


def latency(columns: Columns) -> Plot:
    """Each request's TTFT and end-to-end time by when it was due, with a moving median and p99."""
    figure, axes = figure_of(2, 6.0)
    time, unit = _clock(columns)
    note = ""
    for axis, name, values in ((axes[0], "TTFT", columns.ttft), (axes[1], "End to end", columns.latency)):
        has = np.isfinite(values)
        at, own = time(columns.at[has]), np.maximum(values[has], 1e-5)
        drawn = spread(len(own), POINTS)
        if len(drawn) < len(own):
            note = f" {len(drawn):,} of {len(own):,} requests are drawn as points; the lines are of all."
        axis.scatter(
            at[drawn],
            own[drawn],
            s=min(25.0, max(5.0, 5000 / max(1, len(own)))),
            color=SKY,
            alpha=0.5,
            linewidths=0,
            rasterized=True,
            label="a request" if len(own) else "",
        )
        if len(own):
            width = max(np.ptp(at) / 40, np.ptp(at) * 50 / len(at))
            middles, (median, high) = _moving(at, own, width)
            axis.plot(middles, median, color=BLUE, label="median")
            axis.plot(middles, high, color=ORANGE, label="p99")
            low, high = float(own.min()), float(own.max())
            time_axis(axis, "y", low, high)
            axis.set_ylim(low / 1.25, high * (1.25 if columns.ok.all() else 1.25 * (high / low) ** 0.06))
        else:
            axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center")
            axis.yaxis.set_major_locator(NullLocator())
        if (failed := ~columns.ok).any():
            _errors(axis, columns, time, failed)
        axis.set_ylabel(name)
        axis.set_title(f"{name}: {_quantiles(values)}")
    legend(axes[0], 4)
    axes[1].set_xlabel(f"when the request was due, {unit}")
    caption = (
        "Every request's time to its first token and to its end, counted from when it was due, on a logarithmic scale; "
        f"lines are the median and the 99th percentile of a moving window.{note}"
    )
    if not columns.ok.all():
        caption += f" Crosses at the top are requests that were not answered ({_failures(columns)})."
    return Plot("latency", "Latency over time", caption, figure)


def distributions(columns: Columns) -> Plot:
    """How the four latencies are distributed."""
    figure, grid = figure_of(2, 6.0, columns=2)
    all_of = (
        ("TTFT", columns.ttft),
        ("End to end", columns.latency),
        ("ITL (between tokens)", columns.itl()[0]),
        ("TPOT (a token, in the mean)", columns.tpot),
    )
    for axis, (name, values) in zip(np.ravel(grid), all_of, strict=True):
        axis.set_title(name)
        _distribution(axis, np.sort(values[np.isfinite(values)]))
    caption = (
        "Which share of all was at most so long. Several tokens that came in one chunk are 0 s apart: the ITL's curve "
        "begins above 0 % by their share."
    )
    return Plot("distributions", "Distributions", caption, figure)


def _distribution(axis: Axes, ordered: Floats) -> None:
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if not len(ordered) or ordered[-1] <= 0:
        axis.text(0.5, 0.5, "none longer than 0 s" if len(ordered) else "none", transform=axis.transAxes, ha="center")
        axis.xaxis.set_major_locator(NullLocator())
        return
    shares = np.unique(np.concatenate([np.linspace(0, 1, 600), 1 - np.logspace(-6, -1, 200)]))
    places = np.clip(np.ceil(shares * len(ordered)).astype(int) - 1, 0, len(ordered) - 1)
    positive = ordered[ordered > 0]
    low, high = float(positive[0]), float(ordered[-1])
    axis.plot(np.maximum(ordered[places], low), shares, color=BLUE, drawstyle="steps-post")
    if len(positive) >= 100:  # a few stragglers below would squeeze all the rest
        low = float(positive[len(positive) // 500])
    axis.set_xlim(low / 1.1, high * 1.6)
    time_axis(axis, "x", low, high * 1.3, most=6)
    for share, color, name in ((0.5, GREEN, "p50"), (0.9, ORANGE, "p90"), (0.99, RED, "p99")):
        value = float(ordered[math.ceil(share * len(ordered)) - 1])
        if value >= low / 1.1:
            axis.plot([value, value], [0, share], color=color, linewidth=1, linestyle=(0, (3, 2)))
        axis.plot(
            [value] if value else [],
            [share] if value else [],
            "o",
            color=color,
            markersize=5,
            label=f"{name} {duration(value)}",
        )
    axis.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")


def load(columns: Columns) -> Plot:
    """Requests a second that were due and that were answered, and how many were in flight."""
    figure, axes = figure_of(2, 5.0)
    time, unit = _clock(columns)
    begin, end = columns.begin, float(columns.end.max())
    slots = int(min(60, max(5, len(columns) // 10)))
    edges = np.linspace(begin, max(end, begin + 1e-6), slots + 1)
    width = edges[1] - edges[0]
    ok = columns.ok
    kinds = (("due", columns.at, FAINT, "-"), ("answered", columns.end[ok], BLUE, "-"))
    for name, times, color, line in (*kinds, ("not answered", columns.end[~ok], RED, "--")):
        if len(times):
            counts = np.histogram(times, edges)[0] / width
            axes[0].stairs(counts, time(edges), color=color, label=name, baseline=None, linestyle=line, linewidth=1.6)
    axes[0].set_ylim(bottom=0, top=axes[0].get_ylim()[1] * 1.05)
    axes[0].set_ylabel("requests/s")
    legend(axes[0], 3)
    axes[0].set_title(f"{ok.sum() / max(columns.duration, 1e-9):,.3g} requests/s answered, in the mean of the run")
    firsts = np.where(np.isfinite(columns.first), columns.first, columns.end)
    events = np.concatenate([columns.at, firsts, columns.end])
    moments = np.sort(events) if len(events) <= 6000 else np.linspace(begin, end, 2000)
    begun, seen, over = (
        np.searchsorted(np.sort(times), moments, side="right") for times in (columns.at, firsts, columns.end)
    )
    axes[1].stackplot(
        time(moments), seen - over, begun - seen, colors=(SKY, ORANGE), linewidth=0,
        labels=("answer under way", "waiting for the first token"), step="post", rasterized=True,
    )  # fmt: skip
    axes[1].set_ylim(bottom=0)
    axes[1].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].set_ylabel("requests in flight")
    axes[1].set_xlabel(f"time, {unit}")
    most = _most(columns.at, columns.end)
    axes[1].set_title(f"At most {most:,} in flight, {_most(columns.at, firsts):,} waiting")
    legend(axes[1], 2)
    caption = (
        f"Requests that were due and that ended, in windows of {duration(float(width))}, and how many there were at a "
        "time. Where more are due than answered, the number in flight grows."
    )
    return Plot("load", "Load over time", caption, figure)


def requests(columns: Columns) -> Plot:
    """Each request as a bar: until its first token, and while its answer came."""
    firsts = np.where(np.isfinite(columns.first), columns.first, columns.end)
    wait = firsts - columns.at
    worst = int(np.argmax(wait))
    begin = max(0, min(worst - CLOSE // 2, len(columns) - CLOSE))
    close = np.arange(len(columns))[begin : begin + CLOSE]
    scale, unit = time_unit(columns.duration)
    caption = "A row is a request, from when it was due to its end."
    if len(close) == len(columns):
        figure, (axis,) = figure_of(1, 5.0)
        axis.set_title(f"All {len(columns):,} requests; the longest wait was {duration(float(wait[worst]))}")
    else:
        figure, (above, axis) = figure_of(2, 7.5, ratios=(2, 3))
        drawn = spread(len(columns), 1500)
        drawn = drawn[np.argsort(-(columns.end - columns.at)[drawn])]  # the long ones behind the short ones
        at, width = columns.at[drawn] / scale, min(3.0, 1000 / len(drawn))
        _bars(above, np.zeros(len(drawn)), wait[drawn], (columns.end - columns.at)[drawn], at, width, upright=True)
        above.set_xlim(at.min(), max(at.max(), at.min() + 1e-6))
        above.set_ylim(bottom=0)
        above.set_ylabel("since it was due, s")
        above.axvspan(*(columns.at[close[[0, -1]]] / scale).tolist(), color=FAINT, alpha=0.3, linewidth=0, zorder=0)
        every = f"{len(drawn):,} of {len(columns):,}" if len(drawn) < len(columns) else f"All {len(columns):,}"
        above.set_title(f"{every} requests")
        above.set_xlabel(f"when the request was due, {unit}")
        axis.set_title(f"The {len(close):,} around the one that waited longest ({duration(float(wait[worst]))})")
        caption = (
            "Above, a request is a line that stands where it was due, as high as it took. Below, those in the grey "
            "band from close: a row is a request, from when it was due to its end. Rows that end together have waited "
            "for the same thing."
        )
    starts, ends = columns.at[close] / scale, columns.end[close] / scale
    _bars(axis, starts, firsts[close] / scale, ends, close, min(5.0, 260 / len(close)))
    failed = ~columns.ok[close]
    axis.plot(ends[failed], close[failed], "x", color=RED, markersize=4, label="not answered" if failed.any() else "")
    axis.set_ylim(float(close[-1]) + 0.7, float(close[0]) - 0.7)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    margin = 0.01 * max(float(ends.max() - starts.min()), 1e-9)
    axis.set_xlim(float(starts.min()) - margin, float(ends.max()) + margin)
    axis.set_ylabel("request number")
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"time, {unit}")
    legend(axis, 3)
    return Plot("requests", "Single requests", caption, figure)


def _bars(
    axis: Axes, starts: Floats, firsts: Floats, ends: Floats, rows: Any, width: float, upright: bool = False
) -> None:
    for low, high, color, name in (
        (starts, firsts, ORANGE, "waiting for the first token"),
        (firsts, ends, BLUE, "answer under way"),
    ):
        lines = np.stack([np.stack([low, rows], 1), np.stack([high, rows], 1)], 1)
        lines = lines[:, :, ::-1] if upright else lines
        axis.add_collection(LineCollection(list(lines), colors=color, linewidths=width, label=name, capstyle="butt"))
    axis.autoscale_view()


def caches(columns: Columns, series: Series | None) -> Plot | None:
    """The KV cache over time: its use, hit rate and preemptions, as far as they are known."""
    rows: list[Callable[[Axes], None]] = []
    scale, unit = time_unit(columns.duration)
    if series is not None and series.kv_use:
        rows.append(lambda axis: _kv(axis, series, scale))
    if series is not None and any(series.prompt_tokens):
        hits, prompts = np.array(series.cached_tokens, np.float64), np.array(series.prompt_tokens, np.float64)
        ends = series.interval * np.arange(1.0, len(prompts) + 1) / scale
        rows.append(lambda axis: _hits(axis, ends, hits, prompts))
    elif columns.cached.any():
        at, hits, prompts = columns.at, columns.cached.astype(float), columns.prompt.astype(float)
        rows.append(lambda axis: _hits(axis, at / scale, hits, prompts))
    if series is not None and any(series.preemptions):
        rows.append(lambda axis: _preemptions(axis, series, scale))
    if not rows:
        return None
    figure, axes = figure_of(len(rows), 1.2 + 2.1 * len(rows))
    for axis, draw in zip(axes, rows, strict=True):
        draw(axis)
    axes[-1].set_xlabel(f"time, {unit}")
    caption = "How full the KV cache was, and which share of the prompts' tokens was found in it."
    return Plot("caches", "KV cache over time", caption, figure)


def _kv(axis: Axes, series: Series, scale: float) -> None:
    times = series.interval * np.arange(1, len(series.kv_use) + 1) / scale
    axis.plot(times, series.kv_use, color=BLUE, label="the mean worker's")
    if len(series.kv_most) == len(times) and series.kv_most != series.kv_use:
        axis.plot(times, series.kv_most, color=ORANGE, linewidth=1, label="the fullest worker's")
        legend(axis, 2)
    axis.set_title(
        f"KV cache: {np.mean(series.kv_use):.0%} used in the mean, at most {max(series.kv_most or series.kv_use):.0%}"
    )
    share_axis(axis, "KV blocks used")


def _hits(axis: Axes, times: Floats, hits: Floats, prompts: Floats) -> None:
    edges = np.linspace(times.min(), max(times.max(), times.min() + 1e-9), min(60, max(2, len(times) // 5)) + 1)
    of = np.histogram(times, edges, weights=prompts)[0]
    found = np.histogram(times, edges, weights=hits)[0]
    axis.stairs(np.where(of > 0, found / np.maximum(of, 1), np.nan), edges, color=GREEN, baseline=None, linewidth=1.6)
    axis.set_title(f"Hit rate: {hits.sum() / max(1.0, prompts.sum()):.1%} of all prompt tokens were cached")
    share_axis(axis, "prompt tokens cached")


def _preemptions(axis: Axes, series: Series, scale: float) -> None:
    counts = np.array(series.preemptions)
    axis.stairs(counts / series.interval, series.interval * np.arange(len(counts) + 1) / scale, color=RED, fill=True)
    axis.set_title(f"{counts.sum():,} preemptions")
    axis.set_ylabel("preemptions/s")
    axis.set_ylim(bottom=0)


def goodput(levels: Sequence[Level], slo: str, share: float, highest: float | None) -> Plot:
    """A sweep: what of each rate kept the objectives, and the knee."""
    with style():
        late = [one for one in sorted(levels) if one.ttft_p99 is not None and math.isfinite(one.ttft_p99)]
        figure, axes = figure_of(2 + bool(late), 5.0 + 2.0 * bool(late))
        ordered = sorted(levels)
        rates = np.array([one.rate for one in ordered])
        shares = np.array([one.goodput for one in ordered])
        held = np.array([one.held for one in ordered])
        axes[0].plot(rates, rates, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="all that was offered")
        axes[0].set_ylabel(f"goodput, requests/s\nwithin {slo}")
        axes[1].axhline(share, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=f"asked for: {share:.0%}")
        share_axis(axes[1], "goodput, share of\nall requests offered")
        for axis, values in ((axes[0], rates * shares), (axes[1], shares)):
            axis.plot(rates, values, color=BLUE, zorder=2)
            axis.plot(rates[held], values[held], "o", color=BLUE, markersize=5, label="holds")
            axis.plot(rates[~held], values[~held], "X", color=RED, markersize=6, label="does not hold")
        if late:
            axes[2].plot(
                [one.rate for one in late], [one.ttft_p99 or 0 for one in late], "o-", color=ORANGE, markersize=4
            )
            values = [max(one.ttft_p99 or 0, 1e-5) for one in late]
            time_axis(axes[2], "y", min(values), max(values))
            axes[2].set_ylabel("TTFT, p99")
        for axis in axes:
            axis.set_xlim(0, rates.max() * 1.05)
            if highest is not None:
                axis.axvline(highest, color=GREEN, linewidth=1.2, zorder=1)
        axes[0].set_ylim(bottom=0)
        axes[0].set_title(
            "No rate held" if highest is None else f"The knee is at {highest:.4g} requests/s (green line)"
        )
        axes[0].legend(loc="upper left")
        axes[1].legend(loc="lower left")
        axes[-1].set_xlabel("offered rate, requests/s")
        caption = (
            f"Each point is a run at one rate. It holds if {share:.0%} of all requests offered, refused and failed "
            f"ones included, kept {slo}."
        )
        return Plot("goodput", "Goodput against rate", caption, figure)


def _quantiles(values: Floats) -> str:
    own = values[np.isfinite(values)]
    if not len(own):
        return "none"
    half, nine, most = np.quantile(own, [0.5, 0.9, 0.99], method="inverted_cdf").tolist()
    return f"p50 {duration(half)}, p90 {duration(nine)}, p99 {duration(most)}"


def _clock(columns: Columns) -> tuple[Callable[[Floats], Floats], str]:
    scale, unit = time_unit(columns.duration)
    return lambda times: times / scale, unit


def _moving(at: Floats, values: Floats, width: float) -> tuple[Floats, Floats]:
    """The median and p99 of windows of ``width``: their middles, and [2, windows]."""
    middles = np.linspace(at[0], at[-1], 120) if len(at) > 1 and width > 0 else at[:1]
    lows, highs = np.searchsorted(at, middles - width / 2), np.searchsorted(at, middles + width / 2, side="right")
    found = np.full((2, len(middles)), np.nan)
    for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
        if high > low:
            found[:, i] = np.quantile(values[low:high], [0.5, 0.99])
    return middles, found


def _errors(axis: Axes, columns: Columns, time: Callable[[Floats], Floats], failed: Flags) -> None:
    drawn = np.flatnonzero(failed)[spread(int(failed.sum()), 1000)]
    place = axis.get_xaxis_transform()
    axis.plot(
        time(columns.at[drawn]), np.full(len(drawn), 0.97), "x", color=RED, markersize=5, transform=place, zorder=5,
        label="not answered",
    )  # fmt: skip


def _failures(columns: Columns) -> str:
    counts = np.bincount(columns.outcome, minlength=len(OUTCOMES)).tolist()
    return ", ".join(f"{n:,} {name}" for n, name in zip(counts, OUTCOMES, strict=True) if n and name != "ok")


def _most(begun: Floats, over: Floats) -> int:
    """How many there were at once at most, of things that began and ended."""
    steps = np.concatenate([np.ones(len(begun), int), -np.ones(len(over), int)])
    return int(np.cumsum(steps[np.lexsort((steps, np.concatenate([begun, over])))]).max())
