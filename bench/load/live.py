"""What is a load test doing now? Its progress, on a terminal or as plain lines."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.load.driver import Progress
from bench.load.histogram import Histogram

_LINE_PERIOD = 5.0
_RATE_WINDOW = 5.0
_PLAIN_NAMES = {"ok": "ok", "refused": "refused", "failed": "failed", "timeout": "timed out"}


class View:
    """Shows progress on the error output until the context is left: live on a terminal, else a line every 5 s."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._past: list[Progress] = []
        self._said = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, progress: Progress, title: str, left: float | None, share: float | None) -> None:
        """Show this progress. ``left`` is in seconds, ``share`` how much is done; None where unknown."""
        self._past = [one for one in self._past if one.elapsed >= progress.elapsed - _RATE_WINDOW]
        self._past.append(progress)
        if self._console.is_terminal:
            self._live.update(screen(progress, self._past[0], title, left, share), refresh=True)
        elif time.monotonic() - self._said >= _LINE_PERIOD:
            self._said = time.monotonic()
            self._console.print(line(progress, self._past[0], title, left), highlight=False, soft_wrap=True)


def rates(now: Progress, before: Progress) -> tuple[float, float, float]:
    """Requests begun, requests ended, and output tokens of those, each per second, between two moments."""
    seconds = now.elapsed - before.elapsed
    if seconds <= 0:
        seconds, before = now.elapsed or 1.0, Progress()
    return (
        (now.offered - before.offered) / seconds,
        (now.finished - before.finished) / seconds,
        (now.output_tokens - before.output_tokens) / seconds,
    )


def line(now: Progress, before: Progress, title: str, left: float | None) -> str:
    """Progress in one line."""
    offered, ended, tokens = rates(now, before)
    parts = [
        f"{now.elapsed:.0f} s",
        f"{offered:.1f} requests/s offered, {ended:.1f} answered",
        f"{now.in_flight} in flight ({now.waiting} wait)",
        f"{tokens:,.0f} tokens/s",
        f"TTFT p50 {_ms(now.ttft, 0.5)} p99 {_ms(now.ttft, 0.99)} ms",
        f"ITL p50 {_ms(now.itl, 0.5)} p99 {_ms(now.itl, 0.99)} ms",
    ]
    errors = now.finished - now.outcomes.get("ok", 0)
    parts += [f"{errors} errors"] if errors else []
    parts += [f"{clock(left)} left"] if left is not None else []
    return f"{title}: {'; '.join(parts)}"


def screen(now: Progress, before: Progress, title: str, left: float | None, share: float | None) -> RenderableType:
    """Progress as a few lines of a terminal."""
    offered, ended, tokens = rates(now, before)
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=1.0, completed=share or 0.0, width=30, pulse=share is None, animation_time=now.elapsed)
    head.add_row(bar, f"{clock(now.elapsed)}", f"{clock(left)} left" if left else "")
    table = Table(box=None, pad_edge=False)
    for name in ("", "now", "", "ms", "p50", "p90", "p99"):
        table.add_column(name, justify="right" if name not in ("", "ms") else "left", no_wrap=True)
    outcomes = [(name, count) for name, count in now.outcomes.items() if name != "ok"]
    counts = [
        ("offered/s", f"{offered:,.1f}"),
        ("answered/s", f"{ended:,.1f}"),
        ("in flight (wait)", f"{now.in_flight:,} ({now.waiting:,})"),
        ("tokens/s", f"{tokens:,.0f}"),
    ]
    latencies = [("TTFT", now.ttft), ("ITL", now.itl), ("end to end", now.latency), ("schedule delay", now.delay)]
    for (what, value), (name, histogram) in zip(counts, latencies, strict=True):
        table.add_row(what, value, "   ", name, *(_ms(histogram, share) for share in (0.5, 0.9, 0.99)))
    errors = ", ".join(f"{count:,} {_PLAIN_NAMES.get(name, name)}" for name, count in outcomes)
    ok = f"{now.outcomes.get('ok', 0):,} ok"
    tail = Text(f"{ok}, {errors}" if errors else ok, style="red" if errors else "green")
    return Group(Text(title, style="bold", no_wrap=True, overflow="ellipsis"), head, table, tail)


def clock(seconds: float | None) -> str:
    """``75`` as ``1:15``."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _ms(histogram: Histogram, share: float) -> str:
    return f"{histogram.quantile(share) * 1e3:,.1f}" if histogram.total else "-"
