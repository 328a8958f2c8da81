"""What does the table of shadowing's cost look like? Each side's latencies beside those without shadows."""

from collections.abc import Iterator
from statistics import median, quantiles
from typing import Any, Final

LOADS: Final = {
    "one": "one connection",
    "many": "500 requests/s on 64 connections",
    "streams": "64 streams, a chunk each 20 ms",
}
_FIGURES: Final = (
    ("one", "lat_us", "whole answers, one connection"),
    ("many", "lat_us", "whole answers, 500/s"),
    ("streams", "ttft_us", "64 streams: first chunk"),
    ("streams", "lat_us", "64 streams: last chunk"),
)
_BASE: Final = "none"
_NAMES: Final = {
    "none": "none",
    "again": "none, measured once more",
    "dead": "dead: nobody listens",
    "slow": "slow: takes requests, says nothing",
    "flooding": "flooding: answers without end",
    "answering": "answers at once",
}


def markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    machine, rounds = found["machine"], found["rounds"]
    yield from ("# What shadowing costs whoever is shadowed", "", "Made by `python -m bench.shadow`.", "")
    yield (
        f"{found['date']}, {machine['cpu']}, {machine['cores']} cores; "
        f"{', '.join(f'{name} {version}' for name, version in found['versions'].items())}. {len(rounds)} rounds, in "
        "each of which every side had a gateway of its own for a few seconds of each load; medians over rounds. All "
        "requests are copied. Changes are the median of those within the rounds; beside them, as ±, half of what lies "
        "between the rounds' quartiles: whatever is less can't be told from noise."
    )
    if found.get("note"):
        yield from ("", found["note"])
    yield ""
    heads = [f"{name}: p50 / p99 µs, change of p99" for *_, name in _FIGURES]
    yield f"| shadow's target | {' | '.join(heads)} | MiB | copies |"
    yield "| --- " * (len(_FIGURES) + 3) + "|"
    for side in rounds[0]:
        yield _row(side, rounds)
    yield ""
    foreign = median(figures["foreign"] for one in rounds for figures in one.values())
    yield f"Target: p99 moves by 1 % or less. Others used {foreign:.0%} of the machine meanwhile (median)."


def _row(side: str, rounds: list[dict[str, Any]]) -> str:
    cells = [_NAMES[side]]
    for load, figure, _ in _FIGURES:
        p50 = median(one[side][load][figure][0] for one in rounds)
        p99 = median(one[side][load][figure][-1] for one in rounds)
        cell = f"{p50:,.0f} / {p99:,.0f}"
        if side != _BASE:
            changes = [one[side][load][figure][-1] / one[_BASE][load][figure][-1] - 1 for one in rounds]
            cell += f", {median(changes):+.1%} ± {_spread(changes):.1%}"
        cells.append(cell)
    errors = sum(one[side][load]["errs"] for one in rounds for load in LOADS)
    if errors:
        cells[0] += f" ({errors} errors)"
    cells.append(f"{median(one[side]['memory'] for one in rounds):.0f}")
    copies: dict[str, int] = {}
    for one in rounds:
        for outcome, count in one[side]["copies"].items():
            copies[outcome] = copies.get(outcome, 0) + int(count)
    cells.append(", ".join(f"{count:,} {outcome}" for outcome, count in sorted(copies.items())))
    return f"| {' | '.join(cells)} |"


def _spread(changes: list[float]) -> float:
    """Half of what lies between the quartiles."""
    if len(changes) < 2:
        return 0.0
    low, _, high = quantiles(changes, n=4, method="inclusive")
    return (high - low) / 2
