"""How soon does a gateway know what another has placed? ``python -m bench.gateways`` asks a real native worker.

Two links to one worker, as two gateway processes have them. One submits a short prompt at a random moment; the other's
next load report that counts it ends the measurement. Meanwhile the worker is idle, decodes, or reads long prompts in
steps of a quarter of a second.
"""

import argparse
import asyncio
import datetime
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import msgspec
import uvloop

from bench.machine import Machine, describe
from bench.publish import publish
from engine.link import Blocks, Hello, Load, Progress, Sampling
from gateway.fleet.native import WorkerLink, connect

_ENDLESS: Final = Sampling(max_tokens=1000, ignore_eos=True)


class Case(msgspec.Struct, frozen=True):
    """What the worker does meanwhile: ``requests`` of ``prompt`` tokens each, measured before or after the first."""

    name: str
    requests: int
    prompt: int
    decoding: bool = False


CASES: Final = (
    Case("idle", 0, 0),
    Case("decodes 32 requests", 32, 16, decoding=True),
    Case("reads 24 prompts", 24, 1000),
)


class Found(msgspec.Struct, frozen=True):
    """Seconds from each submission to the other's knowing of it."""

    case: Case
    seconds: list[float]


class Report(msgspec.Struct, frozen=True):
    """``date`` is ISO 8601, UTC."""

    date: str
    machine: Machine
    cases: list[Found]


class Listener:
    """A gateway's end of a link, which wakes whoever waits for a load report."""

    def __init__(self) -> None:
        self.load = Load(waiting=0, running=0, waiting_tokens=0, kv_used=0, kv_total=0, backlog=0.0)
        self.greeted = asyncio.Event()
        self._news = asyncio.Event()

    async def until(self, condition: Callable[[Load], bool]) -> None:
        """Wait for a report that satisfies ``condition``."""
        while not condition(self.load):
            self._news.clear()
            await self._news.wait()

    def on_progress(self, progress: Progress) -> None: ...

    def on_hello(self, link: WorkerLink, hello: Hello) -> None:
        self.greeted.set()

    def on_load(self, load: Load) -> None:
        self.load = load
        self._news.set()

    def on_blocks(self, blocks: Blocks) -> None: ...

    def on_lost(self, link: WorkerLink, reason: str) -> None: ...


async def _once(case: Case, here: WorkerLink, there: Listener, chance: random.Random) -> float:
    """One measurement, in seconds."""
    await there.until(lambda load: load.waiting + load.running == 0)
    streams = [here.open() for _ in range(case.requests)]
    for stream in streams:
        stream.submit([chance.randrange(300, 3000) for _ in range(case.prompt)], _ENDLESS)
    busy = case.requests
    await there.until(lambda load: load.waiting + load.running == busy and load.decoding >= busy * case.decoding)
    await asyncio.sleep(chance.uniform(0.1, 0.4))  # reports of what was before are through
    probe = here.open()
    began = time.perf_counter()
    probe.submit([chance.randrange(300, 3000) for _ in range(8)], _ENDLESS)
    await there.until(lambda load: load.waiting + load.running > busy)
    seconds = time.perf_counter() - began
    for stream in (probe, *streams):
        stream.close()
    return seconds


async def measure(case: Case, samples: int, here: WorkerLink, there: Listener, chance: random.Random) -> Found:
    """Measure one case; ``here`` submits, ``there`` is who is to know."""
    seconds = [await _once(case, here, there, chance) for _ in range(samples)]
    return Found(case, seconds)


async def run(samples: int, seed: int) -> list[Found]:
    """Start a worker and measure every case."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        address = f"unix:{directory}/w.sock"
        command = [sys.executable, "-m", "engine", "--listen", address, "--parent-pid", str(os.getpid())]
        worker = subprocess.Popen([*command, "--threads", "1", "--kv-memory", "256MiB"], stderr=subprocess.DEVNULL)
        try:
            listeners = Listener(), Listener()
            links = []
            for listener in listeners:
                while True:
                    try:
                        links.append(await connect(address, listener))
                        break
                    except OSError:
                        await asyncio.sleep(0.05)
                await listener.greeted.wait()
            return [await measure(case, samples, links[0], listeners[1], chance) for case in CASES]
        finally:
            worker.kill()
            worker.wait()


def markdown(report: Report) -> str:
    """The table of a report."""
    lines = [
        "# What one gateway placed, known to another",
        "",
        f"`python -m bench.gateways`, {report.date}, {report.machine.cpu}, {report.machine.cores} cores: a native",
        "worker of the demo model on one of them. Milliseconds from one gateway's `Submit` to the load report over",
        "another's link that counts it.",
        "",
        "| the worker | measured | p50 | p99 | most |",
        "| --- | --- | --- | --- | --- |",
    ]
    for found in report.cases:
        p99 = quantiles(found.seconds, n=100, method="inclusive")[98]
        figures = " | ".join(f"{1e3 * value:.1f}" for value in (median(found.seconds), p99, max(found.seconds)))
        lines.append(f"| {found.case.name} | {len(found.seconds)} times | {figures} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateways", description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100, help="measurements of each case (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write gateways.json and gateways.md into this folder")
    args = parser.parse_args(argv)
    found = uvloop.run(run(args.samples, args.seed))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    report = Report(now, describe(), found)
    print(markdown(report))
    if args.out is not None:
        publish(args.out / "gateways.json", report, markdown(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
