"""What does its record cost a request that passes through? Gateways with a log and without one take turns on one core.

Key check, placement over eight upstreams, usage and metrics are on in all of them. Turns are short, and many: what else
the machine does only ever adds, so that the quietest quarter of them says most.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import msgspec

from bench.lane.rig import Rig, free_port, gateway
from bench.machine import CpuMeter

TARGET: Final = 8.0
NOTHING: Final = "no log"
SIDES: Final = {NOTHING: None, "durability: os": "os", "durability: disk": "disk"}
_CONNECTIONS: Final = 64
_SECONDS: Final = 0.5


class Passing(msgspec.Struct):
    """CPU microseconds a request of each side, and requests a second, one a turn.

    ``foreign`` is the share of the machine (0 to 1) that others used meanwhile.
    """

    cpu: dict[str, list[float]]
    rate: dict[str, list[float]]
    foreign: float


def configuration(upstreams: list[int], folder: Path, durability: str | None) -> str:
    """A configuration file whose model ``mock`` is answered on these ports."""
    urls = ", ".join(f"'http://127.0.0.1:{port}'" for port in upstreams)
    record = f"log: {{path: {folder}/log, durability: {durability}}}\n" if durability is not None else ""
    return f"models:\n  mock: {{target: primary}}\ntargets:\n  primary: {{engine: openai, urls: [{urls}]}}\n{record}"


@contextlib.contextmanager
def side(folder: Path, upstreams: list[int], durability: str | None) -> Iterator[tuple[int, int]]:
    """A side's gateway: its port and its process."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        file = Path(inside) / "penstock.yaml"
        file.write_text(configuration(upstreams, Path(inside), durability))
        port = free_port()
        command = ["penstock", "serve", "--config", str(file), "--port", str(port), "--data-dir", inside]
        with gateway([*command, "--api-key-env", "BENCH_KEY"], "Penstock is ready") as process:
            yield port, process.pid


def measure_passing(sources: Path, folder: Path, turns: int) -> Passing:
    """All sides, one after the other in each of ``turns``. ``sources``: the rig's."""
    meter = CpuMeter()
    cpu: dict[str, list[float]] = {name: [] for name in SIDES}
    rate: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as built, contextlib.ExitStack() as stack:
        rig = Rig(sources, Path(built))
        upstreams = stack.enter_context(rig.upstreams())
        running = {name: stack.enter_context(side(folder, upstreams, kind)) for name, kind in SIDES.items()}
        names = list(SIDES)
        for turn in range(turns + 1):  # the first one only warms up
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                port, pid = running[name]
                before = used(pid)
                found = rig.load(port, "ns", connections=_CONNECTIONS, seconds=_SECONDS, warm=0.0)
                if found["errs"]:
                    raise RuntimeError(f"{name}: {found['errs']} requests failed")
                if turn:
                    cpu[name].append((used(pid) - before) / found["done"] * 1e6)
                    rate[name].append(found["rps"])
    return Passing(cpu, rate, meter.read().foreign)


def used(pid: int) -> float:
    """CPU seconds that a process has used, all its threads together; not in ticks, as elsewhere, but exactly."""
    return sum(int(one.read_text().split()[0]) for one in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def quiet(figures: list[float]) -> float:
    """The lower quartile."""
    return quantiles(figures, n=4, method="inclusive")[0] if len(figures) > 1 else figures[0]


def lines(found: Passing) -> list[str]:
    """The figures, as lines of Markdown."""
    base = quiet(found.cpu[NOTHING])
    rows = [
        f"| {name} | {median(found.rate[name]):,.0f} "
        f"| {quiet(cpu):.1f} | {median(cpu):.1f} | {f'{quiet(cpu) - base:.1f}' if name != NOTHING else ''} |"
        for name, cpu in found.cpu.items()
    ]
    return [
        "\n## In the gateway\n\n1 kB that passes through, 611 bytes of answer, content `full`, 64 connections; key "
        f"check, placement over 8, usage and metrics on; {len(found.cpu[NOTHING])} turns of {_SECONDS:g} s each, in "
        f"which others used {found.foreign:.0%} of the machine. The target is {TARGET:g} µs.\n",
        "| | requests/s, median | CPU µs a request, lower quartile | median | the log's part |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]
