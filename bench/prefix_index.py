"""How much does the prefix index cost? ``python -m bench.prefix_index`` measures bytes a block, lookups and events.

Fleets of 8 and 64 workers with full caches: system prompts that all share, conversations of a few workers, and blocks
of one. A lookup is of a prompt of 32,768 tokens in blocks of 16, at its worst: each worker has another share of it.
Events come in batches of 32 blocks, as engines send them, half of them stored and half removed, hashes as Python
integers. Times are CPU time, medians of several rounds: other processes matter little.
"""

import argparse
import datetime
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from bench.machine import Machine, describe, version_of
from bench.publish import publish
from scheduler.placement import Job, PlacementConfig, Placer, WorkerInfo
from scheduler.prefix_index import Chain, PrefixIndex, chain

BLOCKS = 2048
BATCH = 32


class Row(msgspec.Struct, frozen=True):
    """One fleet; times in microseconds, events in blocks a second."""

    workers: int
    loops: str
    exact: bool
    blocks: int
    bytes_a_block: float
    lookup: float
    shared_lookup: float
    placed: float
    events: float | None


class Result(msgspec.Struct, frozen=True):
    """What was measured, where and when. ``a_job``: microseconds for a short text's whole way through a placer."""

    date: str
    machine: Machine
    versions: dict[str, str]
    rows: list[Row]
    a_job: float


def full_index(workers: int, exact: bool, fast: bool, blocks: int) -> tuple[PrefixIndex, list[Chain]]:
    """An index of full caches, and the chains in it."""
    draw = random.Random(workers)
    index = PrefixIndex(exact=exact, fast=fast)
    names = [f"worker-{number}" for number in range(workers)]
    for name in names:
        index.add(name, blocks)
    store = index.stored if exact else index.placed
    prompts = [[draw.getrandbits(64) for _ in range(256)] for _ in range(8)]
    chains = []
    for number, name in enumerate(names):
        while index.held(name) < blocks - BLOCKS:
            own = chain([*draw.choice(prompts), *(draw.getrandbits(64) for _ in range(512))])
            chains.append(own)
            store(name, own)
            if draw.random() < 0.3:
                store(names[(number + 1) % workers], own)
    return index, chains


def seconds(call: Callable[[], object], times: int, rounds: int = 7) -> float:
    """Of CPU a call, the median of several rounds."""
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        for _ in range(times):
            call()
        taken.append((time.process_time() - begin) / times)
    return statistics.median(taken)


def measure(workers: int, *, exact: bool, fast: bool, blocks: int) -> Row:
    """One row."""
    index, chains = full_index(workers, exact, fast, blocks)
    size = index.memory / index.blocks
    held = index.blocks
    draw = random.Random(1)
    long = chain([draw.getrandbits(64) for _ in range(BLOCKS)])
    store = index.stored if exact else index.placed
    for number in range(workers):
        store(f"worker-{number}", long[: BLOCKS * (number + 1) // workers])
    lookup = seconds(lambda: index.match(long), 200)
    found = chains[len(chains) // 2]
    shared = seconds(lambda: index.match(found), 200)
    place = seconds(lambda: index.placed("worker-0", long), 20)
    index.settled("worker-0", long)
    return Row(workers, "compiled" if fast else "Python", exact, held, size, lookup * 1e6, shared * 1e6, place * 1e6,
               events(index) if exact else None)  # fmt: skip


def events(index: PrefixIndex) -> float:
    """Blocks a second of CPU that are taken in, from lists of Python integers on."""
    draw = random.Random(2)
    batches = [[draw.getrandbits(64) for _ in range(BATCH)] for _ in range(200)]

    def all_of_them() -> None:
        for batch in batches:
            index.stored("worker-1", chain(batch))
        for batch in batches:
            index.removed("worker-1", chain(batch))

    return 2 * BATCH * len(batches) / seconds(all_of_them, 1)


def a_job() -> float:
    """Microseconds for a short text over 8 HTTP workers: arrival, placement by ``immediate``, first token, end."""
    placer = Placer(PlacementConfig(policy="immediate"))
    for number in range(8):
        placer.worker_up(WorkerInfo(name=f"worker-{number}", chain="text", block_tokens=64), 0.0)
    blocks = {"text": chain(np.random.default_rng(0).integers(1, 1 << 62, 4).tolist())}
    count = iter(range(10**9))

    def one() -> None:
        uid = next(count)
        now = uid * 1e-4
        placer.arrived(Job(uid=uid, prompt_tokens=250, chains=blocks, arrival=now), now)
        placer.decide(now)
        placer.first_token(uid, now)
        placer.finished(uid, now)

    return seconds(one, 2000) * 1e6


def page(result: Result) -> str:
    """The table, as Markdown."""
    lines = [
        "# The prefix index\n",
        f"{result.date}, {result.machine.cpu}; "
        + ", ".join(f"{name} {version}" for name, version in result.versions.items())
        + ". Made by `python -m bench.prefix_index`; CPU time. Targets: 64 bytes a block, 20 µs for a lookup of 2,048 "
        "blocks, 200,000 event blocks/s.\n",
        "| workers | loops | kind | blocks | bytes a block | lookup, all differ µs | lookup, usual µs | placement of "
        "2,048 blocks µs | event blocks/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.workers} | {row.loops} | {'exact' if row.exact else 'remembered'} | {row.blocks:,} | "
        f"{row.bytes_a_block:.1f} | {row.lookup:.1f} | {row.shared_lookup:.1f} | {row.placed:.0f} | "
        f"{'' if row.events is None else f'{row.events:,.0f}'} |"
        for row in result.rows
    ]
    lines.append(f"\nA short text's way through a placer of 8 HTTP workers: {result.a_job:.1f} µs.")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=28_000, help="that a worker's cache holds (default: 28000)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/prefix-index.json"))
    args = parser.parse_args()
    rows = [
        measure(workers, exact=exact, fast=fast, blocks=args.blocks)
        for workers in (8, 64)
        for exact in (True, False)
        for fast in (True, False)
    ]
    versions = {name: version_of(name) for name in ("penstock", "numba", "numpy")}
    result = Result(datetime.date.today().isoformat(), describe(), versions, rows, a_job())
    publish(args.out, result, page(result))
    print(page(result), end="")


if __name__ == "__main__":
    main()
