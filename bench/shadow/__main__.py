"""``python -m bench.shadow``: measures what shadowing does to the latency of who is shadowed, and writes a table.

Without shadows (twice, which shows how far chance alone goes), with a time limit instead, and with copies of all
requests for a target that is dead, slow or flooding, or answers at once. In each round every side has a gateway of its
own, and they take turns of half a second or a second: so what else the machine does comes to all of them, and the
median of many turns leaves it out. ``--more`` adds rounds to those that are there.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.lane.rig import LOAD_CORE, Rig, free_port, gateway, memory, wait_for
from bench.machine import CpuMeter, describe, version_of
from bench.shadow.report import LOADS, SIDES, markdown
from bench.shadow.targets import KINDS

_RESULTS: Final = Path(__file__).parents[1] / "results"
_KEPT: Final = ("rps", "errs", "cpu_us_req", "lat_us", "ttft_us")
_COPIES: Final = re.compile(r'penstock_shadow_requests_total\{.*outcome="(\w+)".*\} (\S+)')


def configuration(side: str, primary: int, shadow: int | None) -> str:
    """A configuration file whose model ``mock`` is answered on one port, and copied to the other one."""
    more = ", timeout: {total: 3600s}" if side == "routed" else ""
    other = ""
    if shadow is not None:
        more = ", shadow: [{target: next, sample: 100%}]"
        other = f"  next: {{engine: openai, urls: ['http://127.0.0.1:{shadow}']}}\n"
    return (
        f"models:\n  mock: {{target: primary{more}}}\n"
        f"targets:\n  primary: {{engine: openai, urls: ['http://127.0.0.1:{primary}']}}\n{other}"
    )


@contextlib.contextmanager
def target(side: str, answering: int) -> Iterator[int | None]:
    """The port of a side's shadow; None where there is none."""
    if side in ("none", "routed", "again"):
        yield None
    elif side == "answering":
        yield answering
    elif side not in KINDS:
        yield free_port()
    else:
        port = free_port()
        process = subprocess.Popen(
            ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "bench.shadow.targets", side, str(port)]
        )
        try:
            wait_for(port)
            yield port
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def side_of(name: str, primary: int, answering: int) -> Iterator[tuple[int, int]]:
    """A side's gateway: its port and its process."""
    with target(name, answering) as shadow, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "penstock.yaml"
        file.write_text(configuration(name, primary, shadow))
        port = free_port()
        command = ["penstock", "serve", "--config", str(file), "--port", str(port), "--data-dir", folder]
        with gateway(command, "Penstock is ready") as process:
            yield port, process.pid


def measure(rig: Rig, primary: int, answering: int, turns: int) -> dict[str, Any]:
    """One round: of each side, what every turn of each load has measured."""
    meter = CpuMeter()
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(side_of(name, primary, answering)) for name in SIDES}
        found: dict[str, Any] = {name: {load: [] for load in LOADS} for name in SIDES}
        for turn in range(turns):
            order = SIDES[turn % len(SIDES) :] + SIDES[: turn % len(SIDES)]
            for name in order:
                port, pid = sides[name]
                for load in LOADS if turn == 0 else ("one", "many"):
                    figures = _LOADS[load](rig, port, pid)
                    found[name][load].append({one: figures[one] for one in _KEPT if one in figures})
        for name, (port, pid) in sides.items():
            found[name] |= {"memory": memory(pid), "copies": copies(port)}
    return {"sides": found, "foreign": meter.read().foreign}


_LOADS: Final[dict[str, Callable[[Rig, int, int], dict[str, Any]]]] = {
    "one": lambda rig, port, pid: rig.load(port, "ns", connections=1, seconds=0.5, warm=0.1, pid=pid),
    "many": lambda rig, port, pid: rig.load(port, "ns", connections=64, seconds=1.0, warm=0.2, pid=pid, rate=500),
    "streams": lambda rig, port, pid: rig.load(
        port, "s_20", connections=128, seconds=3.0, warm=1.3, pid=pid, stream=True, rate=50
    ),
}


def copies(port: int) -> dict[str, float]:
    """What became of copies, as a gateway's metrics say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        return {outcome: float(count) for outcome, count in _COPIES.findall(page.read().decode())}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shadow", description=__doc__)
    parser.add_argument("--rig", type=Path, default=Path("../shared/rig"), help="the folder with the rig's sources")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=6, help="of each side in each round")
    parser.add_argument("--more", action="store_true", help="add to the rounds that are there")
    parser.add_argument("--note", metavar="TEXT", help="what should be known of the circumstances; it goes on the page")
    parser.add_argument(
        "--out", type=Path, default=_RESULTS / "shadow.json", help="where figures go; a table beside them"
    )
    args = parser.parse_args()
    rounds: list[dict[str, Any]] = json.loads(args.out.read_text())["rounds"] if args.more else []
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(args.rig, Path(folder))
        with rig.upstreams(2) as (primary, answering):
            rounds += [measure(rig, primary, answering, args.turns) for _ in range(args.rounds)]
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe().__dict__,
        "versions": {name: version_of(name) for name in ("uvicorn", "uvloop", "httptools", "msgspec", "rapidfuzz")}
        | {"python": sys.version.split()[0]},
        "note": args.note or "",
        "rounds": rounds,
    }
    args.out.write_text(json.dumps(found) + "\n")
    table = markdown(found)
    args.out.with_suffix(".md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
