"""Which of two runs is faster, and is it sure? ``penstock bench compare`` weighs them."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bench.load.comparison import Comparison, Figure, Row

_EPILOG: Final = """\
examples:
  penstock bench compare before after
  penstock bench compare before after --slo ttft=500ms,tpot=50ms --metric goodput --metric ttft
  penstock bench compare before after --json

Requests of a run depend on each other, so intervals come from a moving-block bootstrap (Künsch 1989): blocks of
consecutive requests, as long as the run's own memory asks for, are drawn again and again. A verdict is about B, and is
given where the difference is shown with all rows asked at once (Holm 1979, 5 % for any false one). `no difference
shown` does not say that there is none: a longer run may show it."""


class Metric(NamedTuple):
    """A family of figures: what it is, its unit, and what B is when it has less or more of it than A."""

    label: str
    unit: str
    less: 'Literal["faster", "slower", "lower"]'
    more: 'Literal["faster", "slower", "higher"]'


METRICS: Final = {
    "ttft": Metric("TTFT", "s", "faster", "slower"),
    "itl": Metric("ITL", "s", "faster", "slower"),
    "tpot": Metric("TPOT", "s", "faster", "slower"),
    "latency": Metric("end to end", "s", "faster", "slower"),
    "requests": Metric("requests", "/s", "slower", "faster"),
    "output": Metric("output tokens", "/s", "slower", "faster"),
    "answered": Metric("share answered", "share", "lower", "higher"),
    "goodput": Metric("share good", "share", "lower", "higher"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put what ``penstock bench compare`` takes on ``parser``."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("a", metavar="A", type=Path, help="a run: the folder that --out made, or its records.jsonl")
    parser.add_argument("b", metavar="B", type=Path, help="the run to hold against it")
    parser.add_argument(
        "--metric",
        action="append",
        choices=list(METRICS),
        help="compare this only; may be repeated. ttft, itl, tpot, latency (end to end): p50, p90 and p99 of each; "
        "requests and output (tokens): how many a second; answered and goodput: shares of all requests offered "
        "(default: all of them; goodput only with --slo)",
    )
    parser.add_argument(
        "--slo",
        metavar="BOUNDS",
        help="what makes a request good, such as ttft=500ms,tpot=50ms; latency=10s bounds the whole (default: none)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table; times are in seconds")


def run(args: argparse.Namespace) -> int:
    """Compare and print; the exit status: 0, 1 if a file is no run, 2 if the arguments make no sense."""
    import msgspec
    from rich.console import Console

    from bench.load.columns import RunFileError
    from bench.load.comparison import compare
    from bench.load.summary import parse_slo

    try:
        slo = parse_slo(args.slo) if args.slo else None
    except ValueError as error:
        return _say(f"--slo: {error}", 2)
    if slo is None and "goodput" in (args.metric or ()):
        return _say("--metric goodput needs --slo BOUNDS, such as --slo ttft=500ms,tpot=50ms", 2)
    try:
        found = compare(args.a, args.b, args.metric or (), slo)
    except RunFileError as error:
        return _say(str(error), 1)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        render(found, Console(highlight=False, width=None if sys.stdout.isatty() else 140))
    return 0


def _say(message: str, status: int) -> int:
    print(f"penstock bench compare: {message}", file=sys.stderr)
    return status


def render(found: "Comparison", console: "Console") -> None:
    """Print a comparison for people."""
    from rich.text import Text

    for name, side in (("A", found.a), ("B", found.b)):
        about = ", ".join(filter(None, (side.title, side.target, f"{side.requests:,} requests", side.date)))
        console.print(Text(f"{name}  {side.path}: {about}"))
    for warning in found.warnings:
        console.print(Text(f"warning: {warning}", style="bold red" if "INVALID" in warning else "yellow"))
    console.print()
    console.print(_table(found))
    console.print()
    console.print(Text(_method(found), style="dim"))


def _table(found: "Comparison") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "A", "B", "B - A"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=not name)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("B is", no_wrap=True)
    styles = {"faster": "green", "higher": "green", "slower": "red", "lower": "red"}
    for row in found.rows:
        family, _, quantile = row.metric.partition(" ")
        label = f"{METRICS[family].label} {quantile}".strip()
        cells = [_shown(figure, row) for figure in (row.a, row.b)]
        verdict = Text(row.verdict, style=styles.get(row.verdict, "dim"))
        table.add_row(label, *cells, _shown(row.difference, row, sign="+"), _change(row), verdict)
    return table


def _shown(figure: "Figure", row: "Row", sign: str = "") -> str:
    if math.isnan(figure.value):
        return "none"
    scale, unit = {"s": (1e3, " ms"), "/s": (1.0, "/s"), "share": (100.0, " %")}[row.unit]
    largest = max(abs(row.a.value), abs(row.b.value)) * scale
    digits = 0 if largest >= 1000 else 1 if largest >= 100 else 2
    value, low, high = (f"{one * scale:{sign},.{digits}f}" for one in (figure.value, figure.low, figure.high))
    return f"{value}{unit} [{low}, {high}]"


def _change(row: "Row") -> str:
    if not row.a.value or math.isnan(row.difference.value) or row.unit == "share":
        return ""
    return f"{row.difference.value / row.a.value:+.1%}"


def _method(found: "Comparison") -> str:
    blocks = [figure for row in found.rows for figure in (row.a, row.b) if figure.blocks and row.unit != "/s"]
    asked = sum(row.p is not None for row in found.rows)
    lengths = ""
    if blocks:
        low, high = (round(edge(figure.block for figure in blocks)) for edge in (min, max))
        lengths = f" of {low:,} requests" if low == high else f" of {low:,} to {high:,} requests"
    slo = f" Goodput: within {found.slo}." if found.slo else ""
    return (
        f"In brackets: {found.confidence:.0%} intervals, from a moving-block bootstrap with blocks{lengths}. Verdicts "
        f"are adjusted for {asked} figures being asked at once (Holm), so an interval may just leave out 0 where no "
        f"difference is shown.{slo}"
    )
