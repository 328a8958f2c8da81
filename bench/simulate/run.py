"""How does a simulation become the files of a run? Its requests, summary and series, the same each time it is run."""

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench.load.measure import RECORDS, SUMMARY, TEXT
from bench.load.records import Record, RunInfo, write_line
from bench.load.summary import Slo, Summary, as_json, as_text, summarize
from bench.load.workload import Load
from bench.machine import version_of
from bench.simulate.fleet import Fleet, Progress
from bench.simulate.gateway import Gateway, placing
from bench.simulate.policies import PLACEMENTS, Placement
from bench.simulate.series import Extras
from bench.simulate.worker import Setting, SimWorker
from scheduler.placement import PlacementConfig, Placer

SERIES: Final = "series.json"


def simulate(
    args: argparse.Namespace,
    load: Load,
    setting: Setting,
    slo: Slo | None,
    folder: Path,
    progress: Callable[[Progress], None],
) -> tuple[Summary, Extras]:
    """Simulate a workload and write everything into ``folder``. Nothing that is written depends on the clock."""
    fleet = Fleet(
        setting,
        args.workers,
        gateway_of(args.placement),
        interval=args.interval,
        tenant_of=(lambda one: one.group) if args.tenants == "groups" else (lambda one: ""),
    )
    folder.mkdir(parents=True, exist_ok=True)
    body = folder / f"{RECORDS}.part"
    with body.open("wb") as file:

        def keep(record: Record) -> None:
            file.write(write_line(record))

        extras = fleet.run(load, keep, progress)
    info = _info(args, load, setting)
    info.duration = extras.seconds
    with (folder / RECORDS).open("wb") as file, body.open("rb") as records:
        file.write(write_line(info))
        shutil.copyfileobj(records, file)
    body.unlink()
    summary = summarize(info, _records(folder / RECORDS), slo)
    (folder / SUMMARY).write_bytes(_with_extras(as_json(summary), extras))
    (folder / TEXT).write_text(as_text(summary) + extras_text(extras))
    (folder / SERIES).write_bytes(msgspec.json.format(msgspec.json.encode(fleet.series), indent=0) + b"\n")
    return summary, extras


def gateway_of(name: str) -> Placement | Callable[[Sequence[SimWorker]], Gateway]:
    """A simple rule that sees the workers as they are, or production's placer, which hears of them."""
    if name in PLACEMENTS:
        return PLACEMENTS[name]()
    return placing(lambda: Placer(PlacementConfig(policy=name)))


def extras_text(extras: Extras) -> str:
    """What a simulation knows beside its records, as lines under the summary."""
    lines = [
        f"fleet       {extras.workers} x {extras.steps / extras.workers:,.0f} steps in {extras.seconds:,.1f} s; the "
        f"busiest worker did {extras.busiest:.2f} times the mean's work",
        f"KV cache    {extras.kv_use:.1%} held in the mean, {extras.kv_most:.1%} at most; {extras.hit_rate:.1%} of the "
        f"prompt tokens found; {extras.preemptions:,} preemptions",
    ]
    if extras.service_gap is not None:
        lines.append(
            f"fairness    at most {extras.service_gap:,.0f} tokens of service between tenants that both waited"
        )
    return "\n".join(["", *lines]) + "\n"


def _info(args: argparse.Namespace, load: Load, setting: Setting) -> RunInfo:
    hidden = {"command", "part", "out", "title", "seed", "validate", "model"}
    options = {
        name.replace("_", "-"): str(value)
        for name, value in vars(args).items()
        if name not in hidden and value not in (None, False, "", [])
    }
    machine = setting.machine
    return RunInfo(
        title=args.title or load.title,
        kind="simulation",
        # No date: the same simulation is the same file.
        date="",
        target=f"{args.workers} simulated worker{'s' if args.workers > 1 else ''}, {args.placement}",
        model=machine.name,
        workload=load.title,
        seed=args.seed,
        options=options,
        machine={name: str(value) for name, value in msgspec.structs.asdict(machine).items()},
        versions={"penstock": version_of("penstock")},
    )


def _records(path: Path) -> Iterator[Record]:
    decoder = msgspec.json.Decoder(Record)
    with path.open("rb") as file:
        next(file)
        yield from map(decoder.decode, file)


def _with_extras(summary: bytes, extras: Extras) -> bytes:
    fields = {**msgspec.json.decode(summary), "simulation": extras}
    return msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n"
