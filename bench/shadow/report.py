"""What does the table of shadowing's cost look like? Each side's latencies beside those without shadows."""

from collections.abc import Iterator, Sequence
from statistics import mean, median, quantiles
from typing import Any, Final

SIDES: Final = ("none", "routed", "dead", "slow", "flooding", "answering", "again")
LOADS: Final = ("one", "many", "streams")
_FIGURES: Final = (
    ("one", "lat_us", "one connection"),
    ("many", "lat_us", "500 requests/s"),
    ("streams", "ttft_us", "50 streams/s, first chunk"),
    ("streams", "lat_us", "last chunk"),
)
_BASE: Final = "none"
_NAMES: Final = {
    "none": "none",
    "routed": "none, but a time limit",
    "dead": "dead: nobody listens",
    "slow": "slow: takes requests, says nothing",
    "flooding": "flooding: answers without end",
    "answering": "answers at once",
    "again": "none, measured once more",
}


def markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    machine, rounds = found["machine"], found["rounds"]
    yield from ("# What shadowing costs whoever is shadowed", "", "Made by `python -m bench.shadow`.", "")
    yield (
        f"{found['date']}, {machine['cpu']}, {machine['cores']} cores; "
        f"{', '.join(f'{name} {version}' for name, version in found['versions'].items())}. One core for the gateways, "
        f"one for upstreams, targets and load generator. {len(rounds)} rounds, in each of which every side had a "
        "gateway of its own, and they took turns. All requests are copied. Times in µs: of the p50 and p99 of a side's "
        "turns the lower quartile, since what else the machine does only ever adds; the last line says how far chance "
        "goes all the same. An upstream answers within 10 µs, so that nothing but the gateway is measured; streams "
        "have 63 chunks, one each 20 ms. Whatever "
        "a model is given besides its target makes its requests take another way through the gateway, a time limit "
        "as well as shadows."
    )
    if found.get("note"):
        yield from ("", found["note"])
    heads = [f"{name}: p50 / p99, change of p99" for *_, name in _FIGURES]
    yield from ("", f"| shadow's target | {' | '.join(heads)} | CPU µs/request | MiB | copies |")
    yield "| --- " * (len(_FIGURES) + 4) + "|"
    for side in SIDES:
        if side in rounds[0]["sides"]:
            yield _row(side, [one["sides"] for one in rounds])
    foreign = median(one["foreign"] for one in rounds)
    yield from ("", f"Target: p99 moves by 1 % or less. Others used {foreign:.0%} of the machine (median of rounds).")


def _row(side: str, rounds: Sequence[dict[str, Any]]) -> str:
    cells = [_NAMES[side]]
    for load, figure, _ in _FIGURES:
        p50, p99 = (_quiet(rounds, side, load, figure, place) for place in (0, -1))
        cell = f"{p50:,.0f} / {p99:,.0f}"
        if side != _BASE:
            cell += f", {p99 / _quiet(rounds, _BASE, load, figure, -1) - 1:+.1%}"
        cells.append(cell)
    if errors := sum(turn["errs"] for one in rounds for load in LOADS for turn in one[side][load]):
        cells[0] += f" ({errors} errors)"
    cells.append(f"{mean(turn['cpu_us_req'] for one in rounds for turn in one[side]['one']):.0f}")
    cells.append(f"{median(one[side]['memory'] for one in rounds):.0f}")
    copies: dict[str, int] = {}
    for one in rounds:
        for outcome, count in one[side]["copies"].items():
            copies[outcome] = copies.get(outcome, 0) + int(count)
    cells.append(", ".join(f"{count:,} {outcome}" for outcome, count in sorted(copies.items())))
    return f"| {' | '.join(cells)} |"


def _quiet(rounds: Sequence[dict[str, Any]], side: str, load: str, figure: str, place: int) -> float:
    """The lower quartile of a figure over all turns."""
    found = [turn[figure][place] for one in rounds for turn in one[side][load]]
    return quantiles(found, n=4, method="inclusive")[0] if len(found) > 1 else float(found[0])
