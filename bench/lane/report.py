"""What does the lane's table look like? One row a side, and the issue's targets beside ours."""

from collections.abc import Iterator
from typing import Any, Final

_TARGETS: Final = (
    "| *target for penstock* | *≥ 26,000, and twice every router that places by caches* | | | *≤ 80 / 150* "
    "| *≤ 137, 57 / 186* | | *≥ 8,000* | *≤ 80* | |"
)
_NAMES: Final = {
    "direct": "none (direct)",
    "bare": "bare `asyncio.Protocol` and httptools, does nothing else",
    "penstock": "penstock: key check, placement over 8, usage and metrics on",
}


def markdown(found: dict[str, Any]) -> str:
    """The results as a page."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    machine, versions, sides = found["machine"], found["versions"], found["sides"]
    yield from ("# The pass-through lane", "", "Made by `python -m bench.lane`.", "")
    yield (
        f"{found['date']}, {machine['cpu']}, {machine['cores']} cores; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}. One core for the gateway, one for "
        "upstreams and load generator. 1 KB in, 611 B out, unless a column says otherwise."
    )
    if found.get("note"):
        yield from ("", found["note"])
    yield ""
    yield (
        "| side | requests/s, 64 connections | CPU µs/request | 1 connection p50 / p99 µs | added p50 / p99 µs | "
        "64 streams of 20 ms: TTFT p50, transit p50 / p99 µs | CPU µs/chunk (64 streams of 5 ms) | 64 KB: requests/s "
        "| MiB | foreign CPU |"
    )
    yield "| --- " * 10 + "|"
    direct = sides["direct"]
    for name, side in sides.items():
        yield _row(_NAMES.get(name, name), side, direct, side is direct)
    yield _TARGETS
    yield ""
    yield from _growth(found.get("growth"))


def _row(name: str, side: dict[str, Any], direct: dict[str, Any], is_direct: bool) -> str:
    many, one, streams, dense, long = (side[key] for key in ("many", "one", "streams", "dense", "long"))
    (p50, _, p99), (d50, _, d99) = one["lat_us"], direct["one"]["lat_us"]
    failed = sum(part["errs"] for part in (many, one, streams, dense, long))
    cells = [
        name if not failed else f"{name} ({failed} errors)",
        f"{many['rps']:,.0f}",
        "" if is_direct else f"{many['cpu_us_req']:.1f}",
        f"{p50:.0f} / {p99:.0f}",
        "" if is_direct else f"{p50 - d50:.0f} / {p99 - d99:.0f}",
        f"{streams['ttft_us'][0]:.0f}, {streams['transit_us'][0]:.0f} / {streams['transit_us'][2]:.0f}",
        "" if is_direct else f"{dense['cpu_us_ev']:.1f}",
        f"{long['rps']:,.0f}",
        "" if side["memory"] is None else f"{side['memory']:.0f}",
        f"{side['foreign']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def _growth(growth: dict[str, Any] | None) -> Iterator[str]:
    if growth is None:
        return
    first = growth["first"]
    yield (
        f"Resident memory: {first:.1f} MiB when warm; {growth['requests']:.1f} ({growth['requests'] / first - 1:+.1%}) "
        f"after a million requests more; {growth['disconnects']:.1f} ({growth['disconnects'] / first - 1:+.1%}) after "
        "10,000 clients that left, half of them before the first byte "
        f"({growth['date']}; others used {growth['foreign']:.0%} of the machine). Targets: 5 % of growth, 80 MiB."
    )
