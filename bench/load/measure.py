"""How is a workload asked once? Clients, live progress, and what is left in a folder: records and a summary."""

import argparse
import asyncio
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.load import workload
from bench.load.client import Api
from bench.load.driver import Progress
from bench.load.live import View
from bench.load.processes import Clients, Setup, read_parts
from bench.load.records import RunInfo, write_line
from bench.load.summary import Slo, Summary, as_json, as_text, summarize
from bench.machine import CpuMeter, describe, version_of

RECORDS: Final = "records.jsonl"
SUMMARY: Final = "summary.json"
TEXT: Final = "summary.txt"
INTERRUPTED: Final = "interrupted"


class Plan(NamedTuple):
    """What all runs of a command have in common. Times in seconds; ``args`` are the command's, to be noted."""

    api: Api
    slo: Slo | None
    bound: float
    timeout: float
    processes: int
    title: str
    args: argparse.Namespace


class Result(NamedTuple):
    """A run's summary, and why it was stopped early; empty if it wasn't."""

    summary: Summary
    stopped: str


def measure(
    plan: Plan, args: argparse.Namespace, folder: Path, hopeless: Callable[[Progress], str] = lambda progress: ""
) -> Result:
    """Ask the workload of ``args`` once, and write records and summary into ``folder``.

    ``hopeless`` is asked several times a second why the run should be ended early; empty if it shouldn't.

    Raises:
        WorkloadError: the workload makes no sense.
        ClientsError: a client process failed.
    """
    load = workload.from_args(args)
    closed, reason = load.concurrency, ""
    count = plan.processes if closed is None else min(plan.processes, closed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"part-{number}.jsonl" for number in range(count)]
    setups = [
        Setup(
            api=plan.api,
            timeout=plan.timeout,
            records=str(part),
            concurrency=None if closed is None else closed // count + (number < closed % count),
            duration=load.duration if closed is not None else None,
        )
        for number, part in enumerate(parts)
    ]
    title = plan.title or load.title
    with View() as view:

        def notify(progress: Progress, clients: Clients) -> bool:
            nonlocal reason
            view.show(progress, title, *_left(progress, clients, closed is not None, load.duration))
            reason = reason or hopeless(progress)
            return bool(reason)

        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        meter, began = CpuMeter(), time.monotonic()
        clients = Clients(setups, notify)
        progress = asyncio.run(clients.run(load.asks()))
        use, seconds = meter.read(), time.monotonic() - began
    reason = INTERRUPTED if clients.interrupted else reason
    info = _info(plan, load, title, date, {"interrupted": str(progress.interrupted)} if reason else {})
    info.duration, info.client_cpu = seconds, use.own * (os.cpu_count() or 1)
    info.foreign_cpu = use.foreign
    _collect(info, parts, folder / RECORDS)
    summary = summarize(
        info, read_parts([folder / RECORDS]), plan.slo, bound=plan.bound, interrupted=progress.interrupted
    )
    (folder / SUMMARY).write_bytes(as_json(summary))
    (folder / TEXT).write_text(as_text(summary))
    return Result(summary, reason)


def _left(
    progress: Progress, clients: Clients, closed: bool, duration: float | None
) -> tuple[float | None, float | None]:
    """Seconds left, and the share done, as far as one can know."""
    if closed:
        if duration is not None:
            share = progress.elapsed / duration
        elif clients.all_fed and clients.fed:
            share = progress.finished / clients.fed
        else:
            return None, None
        return (progress.elapsed / share - progress.elapsed if share else None), min(1.0, share)
    until = clients.fed_until if clients.all_fed else duration
    if not until:
        return None, None
    return max(0.0, until - progress.elapsed), min(1.0, progress.elapsed / until)


def _info(plan: Plan, load: workload.Load, title: str, date: str, more: dict[str, str]) -> RunInfo:
    machine = describe()
    hidden = {"url", "command", "part", "out", "title", "model", "header", "seed"}
    options = {
        name.replace("_", "-"): json.dumps(value) if isinstance(value, dict) else str(value)
        for name, value in vars(plan.args).items()
        if name not in hidden and value not in (None, False, {}, [])
    }
    names = ", ".join(line.partition(":")[0] for line in plan.args.header or ())
    return RunInfo(
        title=title,
        kind="run",
        date=date,
        target=plan.api.url,
        model=plan.api.model,
        workload=load.title,
        seed=plan.args.seed,
        options={**options, **({"header": names} if names else {}), **more},
        machine={
            "cpu": machine.cpu,
            "cores": str(machine.cores),
            "memory": f"{machine.memory / 2**30:.0f} GiB",
            "system": machine.system,
        },
        versions={
            "penstock": version_of("penstock"),
            "python": platform.python_version(),
            "uvloop": version_of("uvloop"),
        },
    )


def _collect(info: RunInfo, parts: Sequence[Path], path: Path) -> None:
    """One file out of the clients', and these gone."""
    with path.open("wb") as file:
        file.write(write_line(info))
        file.writelines(map(write_line, read_parts(parts)))
    for part in parts:
        part.unlink()
