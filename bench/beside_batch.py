"""How much later does a first token come because a batch runs beside? ``python -m bench.beside_batch``.

A server of our own with the demo model gets online requests over and over: Poisson arrivals from a fixed seed,
streamed, open loop, each clocked from when it was due. Every other phase a batch that has work for far longer saturates
what they leave. Phases take turns, so that the machine's moods hit both alike; whoever else computes is measured too.
"""

import argparse
import asyncio
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any, Final

import httpx2
import msgspec

from bench.machine import CpuMeter, Machine, describe
from bench.publish import publish

MODEL: Final = "penstock-demo"
ROOT: Final = Path(__file__).parent.parent
_SHEET: Final = "Hotel Alder\nbreakfast time: 7:30\n" + "\n".join(
    f"Room {room}: price {room * 5} euros" for room in range(10, 40)
)


class Phase(msgspec.Struct, frozen=True):
    """Online latencies while a batch ran beside (``beside``) or not, in seconds. ``lines``: the batch's progress."""

    beside: bool
    first_tokens: list[float]
    lines: int
    seconds: float
    foreign_cpu: float


class Report(msgspec.Struct, frozen=True):
    """Every phase, and where and how they were run; ``date`` is ISO 8601, UTC, ``rate`` in requests/s."""

    date: str
    machine: Machine
    rate: float
    phases: list[Phase]


def start_server(state: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """``penstock serve`` with ``options`` on a free port, and its address."""
    command = [sys.executable, "-m", "penstock", "serve", "--port", "0", "--data-dir", str(state), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://[\w.:\[\]]+", line)
    if found is None:
        process.kill()
        raise RuntimeError(f"the server did not get ready: {line!r}")
    return process, found[0]


def question(rng: Random) -> dict[str, Any]:
    """An online request: a sheet of its own, so that no cache has seen it, and a question."""
    sheet = f"{_SHEET}\nRoom {rng.randint(100, 999)}: price {rng.randint(100, 999)} euros"
    lines = sheet.splitlines()
    rng.shuffle(lines)
    text = "\n".join([f"Hotel {rng.randint(0, 10**9)}", *lines])
    asked = {"role": "user", "content": f"What is the price of Room {rng.randint(10, 39)}?"}
    return {
        "model": MODEL,
        "messages": [{"role": "system", "content": text}, asked],
        "stream": True,
        "max_tokens": 32,
        "ignore_eos": True,
    }


async def first_token(client: httpx2.AsyncClient, body: dict[str, Any], due: float) -> float:
    """Seconds from when a request was due to its first token. The answer is read to its end."""
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    first = 0.0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not first and line.startswith("data: {") and '"content":"' in line and '"role"' not in line:
                first = time.perf_counter() - due
    return first


async def online(url: str, rate: float, count: int) -> list[float]:
    """``count`` requests at the same moments each time."""
    rng = Random(1)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=httpx2.Limits(max_connections=None)) as client:
        due = time.perf_counter() + 0.2
        asked = []
        for _ in range(count):
            due += rng.expovariate(rate)
            asked.append(first_token(client, question(Random(rng.random() + time.time_ns())), due))
        return list(await asyncio.gather(*asked))


def start_batch(client: httpx2.Client, lines: int) -> str:
    """Begin a batch that has work for longer than anybody will wait; its id."""
    rng = Random(2)
    text = "".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {**question(rng), "stream": False, "max_tokens": 128},
            }
        )
        + "\n"
        for number in range(lines)
    )
    file = client.post("/v1/files", files={"file": ("in.jsonl", text.encode())}, data={"purpose": "batch"}).json()
    made = client.post(
        "/v1/batches",
        json={"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    ).json()
    return str(made["id"])


def done_lines(client: httpx2.Client, batch: str) -> int:
    """How many lines of a batch have been answered."""
    counts = client.get(f"/v1/batches/{batch}").json()["request_counts"]
    return int(counts["completed"])


def run_phase(url: str, beside: bool, rate: float, count: int) -> Phase:
    """One phase; with a batch beside it, that has begun to answer before and is cancelled afterwards."""
    with httpx2.Client(base_url=url, timeout=120) as client:
        batch = start_batch(client, 3000) if beside else ""
        while beside and done_lines(client, batch) < 64:
            time.sleep(0.2)
        before = done_lines(client, batch) if beside else 0
        meter, began = CpuMeter(), time.perf_counter()
        times = asyncio.run(online(url, rate, count))
        seconds, use = time.perf_counter() - began, meter.read()
        lines = done_lines(client, batch) - before if beside else 0
        if beside:
            client.post(f"/v1/batches/{batch}/cancel").raise_for_status()
            while client.get(f"/v1/batches/{batch}").json()["status"] != "cancelled":
                time.sleep(0.1)
    return Phase(beside, times, lines, seconds, use.foreign)


def markdown(report: Report) -> str:
    """The figures as a table, over all phases of a kind, and the ratios."""
    rows = [
        "| | requests | TTFT p50, ms | p99, ms | lines/s | foreign CPU, worst |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    tails: dict[bool, list[float]] = {}
    for beside in (False, True):
        phases = [phase for phase in report.phases if phase.beside is beside]
        tails[beside] = [percentile(phase.first_tokens, 99) for phase in phases]
        middle = median(median(phase.first_tokens) for phase in phases)
        speed = sum(phase.lines for phase in phases) / sum(phase.seconds for phase in phases)
        rows.append(
            f"| {'beside a batch' if beside else 'alone'} | {sum(len(phase.first_tokens) for phase in phases):,} "
            f"| {middle * 1e3:.1f} | {median(tails[beside]) * 1e3:.1f} | {speed:.1f} "
            f"| {max(phase.foreign_cpu for phase in phases):.0%} |"
        )
    moved = median(tails[True]) / median(tails[False]) - 1
    rows.append(f"\n{report.rate:g} requests/s. p99 moves by {moved:+.1%} (medians of {len(tails[True])} phases).")
    return "\n".join(rows) + "\n"


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that ``percent`` of all don't exceed."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and keep everything if asked to; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.beside_batch", description=__doc__)
    parser.add_argument("--rate", type=float, default=8.0, help="online requests/s (default: 8)")
    parser.add_argument("--requests", type=int, default=200, help="a phase (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="phases of each kind (default: 3)")
    parser.add_argument("--out", type=Path, help="keep the measurements in this JSON file and the table beside it")
    args = parser.parse_args(argv)
    phases: list[Phase] = []
    with tempfile.TemporaryDirectory() as state:
        process, url = start_server(Path(state))
        try:
            asyncio.run(online(url, args.rate, 40))  # warms up
            for turn in range(args.rounds):
                for beside in (False, True) if turn % 2 == 0 else (True, False):
                    phases.append(run_phase(url, beside, args.rate, args.requests))
                    shown = percentile(phases[-1].first_tokens, 99) * 1e3
                    print(f"round {turn + 1}, {'beside' if beside else 'alone'}: p99 {shown:.1f} ms", file=sys.stderr)
        finally:
            process.terminate()
            process.wait(60)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    report = Report(date, describe(), args.rate, phases)
    page = markdown(report)
    print(page)
    if args.out:
        publish(args.out, report, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
