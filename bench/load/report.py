"""How does one look at a run? `write` puts its plots (PNG) and one page (report.html) beside its records.

The page needs no network and no other file: plots are inside, as SVG.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from matplotlib.figure import Figure

from bench.load import plots
from bench.load.columns import RECORDS, RunFileError, read_records, read_run
from bench.load.drawing import duration, style
from bench.load.plots import Plot, Series
from bench.load.records import RunInfo
from bench.load.summary import Figures, Quantiles, Summary, summarize
from bench.load.sweep import Level, Sweep

PAGE: Final = "report.html"
_Struct = TypeVar("_Struct", bound=msgspec.Struct)

_CSS: Final = """
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #666; --line: #ddd; --page: #fff; --card: #f6f6f4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --faint: #a0a0a0; --line: #3a3a3a; --page: #161616; --card: #212121 }
}
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem }
p { margin: .4rem 0; max-width: 46rem } .faint, figcaption { color: var(--faint); font-size: .87rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: .5rem 0 }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap }
th { font-weight: 600 } tr > :first-child, .left { text-align: left }
.words td { text-align: left; overflow-wrap: anywhere; white-space: normal }
.scroll { overflow-x: auto } figure { margin: 0 } figure img { width: 100%; background: #fff; border-radius: 6px }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0 }
.tile { background: var(--card); border-radius: 6px; padding: .6rem .9rem; min-width: 8rem }
.tile b { display: block; font-size: 1.25rem; font-weight: 600 } .tile span { color: var(--faint); font-size: .82rem }
.bad { border-left: 6px solid #d55e00; background: var(--card); padding: .6rem 1rem; margin: 1rem 0; max-width: none }
a { color: inherit }
@media print {
  :root { --ink: #000; --faint: #444; --line: #bbb; --page: #fff; --card: #f3f3f3 }
  body { margin: 0; max-width: none } figure, table { break-inside: avoid } h2 { break-after: avoid }
}
"""


def write(folder: Path) -> list[Path]:
    """Write the report of the run, or of the sweep, in ``folder``; the files that were written.

    A sweep has a page of its own, and one for each of the two levels at the knee.

    Raises:
        RunFileError: there is no run in it, or something else than one.
    """
    sweep = _read(folder / "sweep.json", Sweep)
    if sweep is None:
        return _write_run(folder)
    page, written = _sweep_page(folder, sweep)
    for level in sweep.levels:
        at_knee = level.rate in (sweep.highest, sweep.lowest_failing)
        if at_knee and level.folder and (folder / level.folder / RECORDS).is_file():
            written += _write_run(folder / level.folder)
    return [*written, *page]


def _write_run(folder: Path) -> list[Path]:
    info, columns = read_run(folder)
    summary = _read(folder / "summary.json", Summary)
    if summary is None:
        summary = summarize(info, read_records(folder))
    series = _read(folder / "series.json", Series)
    written, drawn = [], []
    for plot in plots.plots(columns, series):
        written.append(_png(folder, plot))
        drawn.append(_figure(plot))
    body = [*_head(summary), *_tiles(summary), *_tables(summary), *drawn, *_about(info)]
    return [*written, _page(folder, summary.title, body)]


def _sweep_page(folder: Path, sweep: Sweep) -> tuple[list[Path], list[Path]]:
    summaries = {one.rate: _read(folder / one.folder / "summary.json", Summary) for one in sweep.levels if one.folder}
    points = []
    for one in sweep.levels:
        summary = summaries.get(one.rate)
        ttft = summary.ttft.p99 if summary is not None and summary.ttft is not None else None
        points.append(plots.Level(one.rate, one.goodput, one.held, ttft))
    plot = plots.goodput(points, sweep.slo, sweep.share, sweep.highest)
    title = next((one.title for one in summaries.values() if one is not None), "A sweep")
    body = [f"<h1>{escape(title)}: how much does it hold?</h1>", f"<p>{escape(_knee(sweep))}</p>"]
    late = [one for one in summaries.values() if one is not None and one.invalid]
    if late:
        body.append(f'<p class="bad"><b>Invalid:</b> at {len(late)} of the rates, {escape(late[0].invalid)}.</p>')
    body += [_figure(plot), "<h2>Rates</h2>", _levels(sweep, summaries)]
    files = [folder / level.folder / RECORDS for level in sweep.levels if level.folder]
    recorded = next((file for file in files if file.is_file()), None)
    if recorded is not None:
        with recorded.open("rb") as file:
            body += _about(msgspec.json.decode(file.readline(), type=RunInfo))
    return [_page(folder, f"{title}: how much does it hold?", body)], [_png(folder, plot)]


def _knee(sweep: Sweep) -> str:
    kept = f"{sweep.share:.0%} of all requests within {sweep.slo}"
    if sweep.highest is None:
        return (
            f"No rate kept {kept}; the lowest that was tried is {min(one.rate for one in sweep.levels):.4g} requests/s."
        )
    if sweep.lowest_failing is None:
        return f"Every rate kept {kept}, up to {sweep.highest:.4g} requests/s."
    return (
        f"{sweep.highest:.4g} requests/s is the highest rate that kept {kept}; {sweep.lowest_failing:.4g} requests/s "
        "did not."
    )


def _levels(sweep: Sweep, summaries: dict[float, Summary | None]) -> str:
    rows = []
    for level in sorted(sweep.levels, key=lambda one: one.rate):
        summary = summaries.get(level.rate)
        times = (summary.ttft, summary.tpot) if summary is not None else (None, None)
        cells = [f"{level.rate:.4g}", f"{level.goodput:.1%}", "yes" if level.held else "no"]
        cells += ["" if one is None else duration(one.p99) for one in times]
        rows.append([*map(escape, cells), f'<div class="left">{_link(sweep, level)}{escape(level.stopped)}</div>'])
    return _table(("requests/s", "goodput", "holds", "TTFT p99", "TPOT p99", "remarks"), rows)


def _link(sweep: Sweep, level: Level) -> str:
    if level.rate not in (sweep.highest, sweep.lowest_failing) or not level.folder:
        return ""
    return f'<a href="{escape(level.folder)}/{PAGE}">its own report</a> '


def _head(summary: Summary) -> Iterator[str]:
    yield f"<h1>{escape(summary.title)}</h1>"
    made = "simulated" if summary.kind == "simulation" else "measured"
    what = f"{summary.model} at {summary.target}, {made} {summary.date}".rstrip()
    yield f'<p class="faint">{escape(what)}<br>{escape(summary.workload)}</p>'
    if summary.invalid:
        yield f'<p class="bad"><b>This run is invalid:</b> {escape(summary.invalid)}. Do not use its figures.</p>'
    if summary.interrupted:
        yield f'<p class="bad">The run was stopped early: {summary.interrupted:,} requests under way are left out.</p>'


def _tiles(summary: Summary) -> Iterator[str]:
    tiles: list[tuple[str, str]] = []
    if summary.goodput is not None:
        tiles.append((f"{summary.goodput:.1%}", f"goodput: of all offered, within {summary.slo}"))
    if summary.ttft is not None:
        tiles.append((duration(summary.ttft.p99), "TTFT, p99"))
    if summary.tpot is not None:
        tiles.append((duration(summary.tpot.p99), "TPOT, p99"))
    tiles.append((f"{summary.request_rate:.3g}/s", "requests answered"))
    tiles.append((f"{summary.output_rate:,.0f}/s", "output tokens"))
    failed = summary.offered - summary.outcomes.get("ok", 0)
    tiles.append((f"{failed:,}", f"of {summary.offered:,} requests not answered"))
    cells = "".join(f'<div class="tile"><b>{escape(b)}</b><span>{escape(text)}</span></div>' for b, text in tiles)
    yield f'<div class="tiles">{cells}</div>'


def _tables(summary: Summary) -> Iterator[str]:
    yield "<h2>Latencies</h2>"
    yield _latencies(summary, summary.delay)
    yield (
        '<p class="faint">Counted from when each request was due, not from when it was sent. TTFT: until the first '
        "token; ITL: between two tokens; TPOT: a token after the first, in each request's mean; schedule delay: how "
        "late the client itself was.</p>"
    )
    yield "<h2>Totals</h2>"
    yield _words(_totals(summary))
    if summary.errors:
        yield "<h2>Errors</h2>"
        shown = list(summary.errors.items())
        more = [("…", f"and {len(shown) - 20} other errors")] if len(shown) > 20 else []
        yield _words([(f"{count:,}", error) for error, count in shown[:20]] + more)
    if summary.groups:
        yield "<h2>Groups</h2>"
        rows = [_group(name, figures) for name, figures in list(summary.groups.items())[:50]]
        yield _table(("group", "requests", "goodput", "TTFT p50", "TTFT p99", "TPOT p99", "end to end p99"), rows)
        if len(summary.groups) > 50:
            yield f'<p class="faint">{len(summary.groups) - 50:,} more groups are in summary.json.</p>'


def _totals(summary: Summary) -> Iterator[tuple[str, str]]:
    rate = "" if summary.offered_rate is None else f", {summary.offered_rate:,.3g} a second"
    yield "Offered", f"{summary.offered:,} requests{rate}, in {duration(summary.duration)}"
    outcomes = ", ".join(f"{count:,} {name}" for name, count in summary.outcomes.items()) or "none"
    yield "Answers", f"{outcomes}; {summary.request_rate:,.3g} ok a second"
    if summary.good is not None:
        yield "Within the objectives", f"{summary.good:,} requests, {summary.good_rate:,.3g} a second ({summary.slo})"
    found = summary.cached_tokens / summary.prompt_tokens if summary.prompt_tokens else 0.0
    yield "Input", f"{summary.prompt_tokens:,} tokens, {summary.prompt_rate:,.0f} a second, {found:.1%} of them cached"
    yield "Output", f"{summary.output_tokens:,} tokens, {summary.output_rate:,.0f} a second"
    if summary.kind == "run":
        yield "Client", f"{summary.client_cpu:.2f} cores; other processes took {summary.foreign_cpu:.0%} of its machine"


def _latencies(figures: Figures, delay: Quantiles | None) -> str:
    named = (
        ("TTFT", figures.ttft),
        ("ITL", figures.itl),
        ("TPOT", figures.tpot),
        ("End to end", figures.latency),
        ("Schedule delay", delay),
    )
    rows = [
        [name, *(escape(duration(value)) for value in (one.mean, one.p50, one.p90, one.p99, one.p999, one.max))]
        for name, one in named
        if one is not None
    ]
    return _table(("", "mean", "p50", "p90", "p99", "p99.9", "longest"), rows)


def _group(name: str, figures: Figures) -> list[str]:
    share = "" if figures.goodput is None else f"{figures.goodput:.1%}"
    ttft, tpot, whole = figures.ttft, figures.tpot, figures.latency
    cells = [name or "(none)", f"{figures.offered:,}", share, duration(ttft.p50) if ttft else ""]
    cells += [duration(one.p99) if one else "" for one in (ttft, tpot, whole)]
    return [escape(cell) for cell in cells]


def _about(info: RunInfo) -> Iterator[str]:
    for heading, pairs in (("Options", info.options), ("Machine", info.machine), ("Versions", info.versions)):
        if pairs:
            yield f"<h2>{heading}</h2>"
            yield _words([*pairs.items(), *([("seed", str(info.seed))] if heading == "Options" else [])])


def _words(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f'<div class="scroll"><table class="words">{rows}</table></div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(plot: Plot) -> str:
    data = base64.b64encode(_drawn(plot.figure, "svg")).decode()
    image = f'<img alt="{escape(plot.heading)}" src="data:image/svg+xml;base64,{data}">'
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>"
    return f"<h2>{escape(plot.heading)}</h2><figure>{image}{caption}</figure>"


def _drawn(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    with style():
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        figure.set_layout_engine("none")  # it has its places now, and finding them takes longest
    return file.getvalue()


def _png(folder: Path, plot: Plot) -> Path:
    path = folder / f"{plot.name}.png"
    path.write_bytes(_drawn(plot.figure, "png"))
    return path


def _page(folder: Path, title: str, body: Iterable[str]) -> Path:
    path = folder / PAGE
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_CSS}</style>\n'
        "</head>\n<body>\n"
    )
    path.write_text(head + "\n".join(body) + "\n</body>\n</html>\n", encoding="utf-8")
    return path


def _read(path: Path, kind: type[_Struct]) -> _Struct | None:
    """What a file beside the records holds; None if there is none, or one of another version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise RunFileError(f"{path} is no {kind.__name__.lower()}: {error}") from None
