"""``python -m bench.shadow``: measures what shadowing does to the latency of who is shadowed, and writes a table.

In each round every side has a gateway of its own, one after the other, so that what else the machine does comes to all
of them: without shadows (twice, which shows how far chance alone goes), and with copies of all requests for a target
that is dead, slow or flooding, or answers at once. ``--more`` adds rounds to those that are there.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.lane.rig import LOAD_CORE, Rig, free_port, gateway, memory, wait_for
from bench.machine import CpuMeter, describe, version_of
from bench.shadow.report import markdown
from bench.shadow.targets import KINDS

_RESULTS: Final = Path(__file__).parents[1] / "results"
_SIDES: Final = ("none", "dead", "slow", "flooding", "answering", "again")
_RATE: Final = 500.0
_COPIES: Final = re.compile(r'penstock_shadow_requests_total\{.*outcome="(\w+)".*\} (\S+)')


def configuration(primary: int, shadow: int | None) -> str:
    """A configuration file whose model ``mock`` is answered on one port, and copied to the other one."""
    copied = "" if shadow is None else ", shadow: [{target: next, sample: 100%}]"
    other = "" if shadow is None else f"\n  next: {{engine: openai, urls: ['http://127.0.0.1:{shadow}']}}"
    return (
        f"models:\n  mock: {{target: primary{copied}}}\n"
        f"targets:\n  primary: {{engine: openai, urls: ['http://127.0.0.1:{primary}']}}{other}\n"
    )


@contextlib.contextmanager
def target(side: str, answering: int) -> Iterator[int | None]:
    """The port of a side's shadow; None where there is none."""
    if side in ("none", "again"):
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


def measure(rig: Rig, side: str, primary: int, answering: int, seconds: float) -> dict[str, Any]:
    """A side's figures in one round."""
    meter = CpuMeter()
    with target(side, answering) as shadow, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "penstock.yaml"
        file.write_text(configuration(primary, shadow))
        port = free_port()
        command = ["penstock", "serve", "--config", str(file), "--port", str(port), "--data-dir", folder]
        with gateway(command, "Penstock is ready") as process:
            found: dict[str, Any] = {
                "one": rig.load(port, "ns", connections=1, seconds=seconds, pid=process.pid),
                "many": rig.load(port, "ns", connections=64, seconds=seconds, pid=process.pid, rate=_RATE),
                "streams": rig.load(port, "s_20", connections=64, seconds=seconds, pid=process.pid, stream=True),
            }
            return found | {
                "memory": memory(process.pid),
                "copies": copies(port),
                "foreign": meter.read().foreign,
            }


def copies(port: int) -> dict[str, float]:
    """What became of copies, as a gateway's metrics say."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        return {outcome: float(count) for outcome, count in _COPIES.findall(page.read().decode())}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shadow", description=__doc__)
    parser.add_argument("--rig", type=Path, default=Path("../shared/rig"), help="the folder with the rig's sources")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
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
            for number in range(args.rounds):
                turn = (number + len(rounds)) % len(_SIDES)
                order = _SIDES[turn:] + _SIDES[:turn]
                one = {side: measure(rig, side, primary, answering, args.seconds) for side in order}
                rounds.append({side: one[side] for side in _SIDES})
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe().__dict__,
        "versions": {name: version_of(name) for name in ("uvicorn", "uvloop", "httptools", "msgspec", "rapidfuzz")}
        | {"python": sys.version.split()[0]},
        "note": args.note or "",
        "rounds": rounds,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    table = markdown(found)
    args.out.with_suffix(".md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
