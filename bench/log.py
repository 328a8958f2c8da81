"""What does the request log cost a request, how many records does it take, and does it keep what it acknowledged?

``python -m bench.log`` measures appending; ``--passing N`` what a record costs in the gateway, in N turns;
``--compact N`` what becomes of N records afterwards; ``--kills N`` kills a process that appends, N times, and looks for
what it had been promised. What isn't measured stays in the results as it was.
"""

import argparse
import asyncio
import datetime
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from bench.log_kills import Kills, run_kills
from bench.log_lane import Passing, lines, measure_passing
from bench.machine import Machine, describe, version_of
from bench.publish import publish
from flywheel.compaction import compact, records_table
from flywheel.log import Durability, Log
from flywheel.log.batch import Batch
from flywheel.log.frame import Kind
from flywheel.log.reading import read_frames
from flywheel.log.segment_writer import SegmentWriter
from flywheel.query import connect
from flywheel.record import VERSION, Content, Record, Sampling, Timing, Uncertainty, encode

IN_FLIGHT: Final = 64
TEXT_BYTES: Final = 5000
MODELS: Final = ("chat", "code", "small")
DAY: Final = 86_400_000_000  # microseconds
P95: Final = (
    "SELECT model, date_trunc('hour', received) AS hour, quantile_cont(ttft, 0.95), quantile_cont(ended, 0.95) "
    "FROM records GROUP BY ALL"
)


class Appending(msgspec.Struct):
    """Appends to a log, `IN_FLIGHT` at a time.

    Attributes:
        what: with which durability.
        records: how many, of ``size`` bytes each.
        rate: records a second.
        p50: from append to acknowledgement, in milliseconds; ``p99``, ``worst`` likewise.
        cpu: of the whole process, in microseconds a request: its record is made, its beginning and its end are
            encoded, checksummed and written.
        probe: commits a second that the disk takes with nothing in the way: as many bytes as those in flight, written
            and synced, file after file; None where nothing is synced.
    """

    what: str
    records: int
    size: int
    rate: float
    p50: float
    p99: float
    worst: float
    cpu: float
    probe: float | None = None


class Compacting(msgspec.Struct):
    """Records on their way from segments to the table, and questions about them.

    Attributes:
        records: how many, of ``size`` bytes each, over a day and three models.
        rate: records a second; ``cpu``: of the process, in microseconds a record, all threads.
        table: bytes a record in the table.
        files: that the table has.
        opening: seconds until it can be asked; ``query``: for the 95th percentiles of times by model and hour.
    """

    records: int
    size: int
    rate: float
    cpu: float
    table: float
    files: int
    opening: float
    query: float


class Result(msgspec.Struct):
    date: str
    machine: Machine
    versions: dict[str, str]
    appending: list[Appending] = []
    passing: Passing | None = None
    compacting: list[Compacting] = []
    kills: dict[str, Kills] = {}


def make_record(name: str, received: int, text: bytes) -> Record:
    """A record with everything in it."""
    return Record(
        VERSION,
        name,
        received,
        outcome="ok",
        status=200,
        operation_name="chat",
        endpoint="/v1/chat/completions",
        model="chat",
        request_model="chat",
        response_model="Qwen/Qwen2.5-7B-Instruct",
        variant="stable",
        target="qwen",
        worker="10.0.0.5:8000",
        provider_name="openai",
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        key="team-a",
        user="user-1234",
        session="session-1",
        sticky_hash=0.25,
        input_tokens=1100,
        cached_tokens=512,
        output_tokens=120,
        stream=True,
        finish_reasons=("stop",),
        attempts=1,
        sampling=Sampling(temperature=0.7, max_tokens=100),
        timing=Timing(0.0001, 0.0002, 0.05, 1.2, 1.21, [0] * 10 + [3, 40, 70, 5] + [0] * 16),
        uncertainty=Uncertainty(0.5, 2.0, -4.0, -0.3, 0.1),
        content=Content("full", text),
    )


def appending(folder: Path, durability: Durability, count: int) -> Appending:
    """Append ``count`` records with the gateway's event loop."""
    text = os.urandom(TEXT_BYTES)
    times: list[float] = []
    size = len(encode(make_record("req_0000000", time.time_ns() // 1000, text)))

    async def run() -> tuple[float, float]:
        log = Log(folder, durability=durability, patience=60.0)
        log.start()
        over = asyncio.get_running_loop().create_future()
        left = count

        def request() -> None:
            nonlocal left
            left -= 1
            name = f"req_{left:07}"
            received = time.time_ns() // 1000
            log.begin(Record(VERSION, name, received, model="chat", key="team-a", user="user-1234"))
            begun = time.perf_counter()
            log.append(make_record(name, received, text), lambda written: ended(begun))

        def ended(begun: float) -> None:
            times.append(time.perf_counter() - begun)
            if left > 0:
                request()
            elif len(times) == count and not over.done():
                over.set_result(None)

        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(IN_FLIGHT):
            request()
        await over
        took = time.perf_counter() - wall, time.process_time() - cpu
        log.close()
        assert log.records == count
        assert not log.lost
        return took

    wall, cpu = uvloop.run(run())
    times.sort()
    return Appending(
        f"durability: {durability}",
        count,
        size,
        count / wall,
        times[count // 2] * 1e3,
        times[int(count * 0.99)] * 1e3,
        times[-1] * 1e3,
        cpu / count * 1e6,
    )


def probe(folder: Path, commits: int) -> float:
    """Commits a second of as many bytes as those in flight, written and synced by nothing but the two system calls."""
    data = os.urandom(IN_FLIGHT * TEXT_BYTES)
    file = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(file, 0, len(data) * commits)
        os.fsync(file)
        begun = time.perf_counter()
        for _ in range(commits):
            os.write(file, data)
            os.fdatasync(file)
        return commits / (time.perf_counter() - begun)
    finally:
        os.close(file)
        (folder / "probe").unlink()


def measure_appending(folder: Path, count: int) -> list[Appending]:
    """Both durabilities."""
    found = []
    for durability in ("os", "disk"):
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            commits = probe(Path(inside), max(2, count // IN_FLIGHT // 8)) if durability == "disk" else None
            one = appending(Path(inside), durability, count)
            one.probe = commits
            found.append(one)
    return found


def texts(size: int) -> Iterator[bytes]:
    """Requests of ``size`` bytes with words of this project's own pages, no two the same."""
    draw = random.Random(0)
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    words = sorted({word for page in pages for word in page.read_text().split() if word.isalpha()})
    long = " ".join(draw.choices(words, k=400_000)).encode()
    while True:
        place = draw.randrange(len(long) - size)
        yield b'{"messages":[{"role":"user","content":"%b"}]}' % long[place : place + size]


def fill(folder: Path, count: int, size: int) -> int:
    """Write ``count`` records of a day to segments; the bytes of one."""
    writer = SegmentWriter(folder, 64 << 20, 1e9, durable=False)
    begin = 20_000 * DAY
    written = 0
    batch = Batch()
    for number, text in zip(range(count), texts(size), strict=False):
        record = make_record(f"req_{number:07}", begin + number * DAY // count, text)
        record.model = MODELS[number % len(MODELS)]
        batch.endings.append(record)
        if len(batch.endings) == 200 or number == count - 1:
            batch.put_together(writer.salt)
            writer.write([batch], 0.0)
            written += sum(map(len, batch.pieces[1::2]))
            batch = Batch()
    writer.close()
    return written // count


def measure_compacting(folder: Path, count: int, size: int) -> Compacting:
    """Fill a log, compact it, ask it."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        log = Path(inside)
        bytes_each = fill(log, count, size)
        os.sync()
        wall, cpu = time.perf_counter(), time.process_time()
        done = compact(log)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert done.records == count
        files = records_table(log).files()
        begun = time.perf_counter()
        with connect(log) as database:
            opened = time.perf_counter()
            groups = len(database.execute(P95).fetchall())
            asked = time.perf_counter()
        assert groups == min(24 * len(MODELS), count)
        return Compacting(
            *(count, bytes_each, count / wall, cpu / count * 1e6, sum(file.size for file in files) / count, len(files)),
            *(opened - begun, asked - opened),
        )


def measure_kills(folder: Path, count: int, before: dict[str, Kills]) -> dict[str, Kills]:
    """Both durabilities, added to ``before``; every 25 kills what there is is compacted."""
    found = {}
    for durability in ("os", "disk"):
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            log = Path(inside)

            def between(number: int, log: Path = log) -> None:
                if number % 25 == 24 or number == count:
                    compact(log)

            def read(log: Path = log) -> list[str]:
                assert not [frame for frame in read_frames(log) if frame.kind == Kind.RECORD]
                with connect(log) as database:
                    return [row[0] for row in database.execute("SELECT request_id FROM records").fetchall()]

            old = before.get(durability, Kills())
            new = run_kills(log, count, read, durability=durability, seed=old.kills, between=between)
            fields = ((getattr(old, name), getattr(new, name)) for name in Kills.__struct_fields__)
            found[durability] = Kills(*(one + other for one, other in fields))
    return found


def page(result: Result) -> str:
    """The figures, as Markdown."""
    said = [
        "# The request log\n",
        f"{result.date}, {result.machine.cpu}, {result.machine.cores} cores; "
        + ", ".join(f"{name} {version}" for name, version in result.versions.items())
        + ". Made by `python -m bench.log`, on a machine that others use, too.\n",
        f"## Appending\n\n{IN_FLIGHT} requests at a time, each with a beginning and a record of {TEXT_BYTES:,} bytes "
        "of text with everything else in it. CPU is the process's, for all of it: making the record, encoding, "
        "checksum, write.\n",
        "| | records/s | MB/s | p50 ms | p99 ms | worst ms | CPU µs a request |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {one.what} ({one.records:,}) | {one.rate:,.0f} | {one.rate * one.size / 1e6:,.0f} | {one.p50:.2f} "
            f"| {one.p99:.2f} | {one.worst:.1f} | {one.cpu:.1f} |"
            for one in result.appending
        ),
    ]
    said += [
        f"\nThis disk takes {one.probe:,.0f} commits of {IN_FLIGHT * TEXT_BYTES // 1000} kB a second with nothing else "
        f"going on: {one.probe * IN_FLIGHT:,.0f} records/s is the limit for `disk` with {IN_FLIGHT} in flight."
        for one in result.appending
        if one.probe is not None
    ]
    if result.passing is not None:
        said += lines(result.passing)
    if result.compacting:
        said += [
            "\n## Compaction and questions\n\nRecords of a day, of three models, with texts of random words, go from "
            "closed segments into the Delta Lake table. The question is for the 95th percentiles of the time to the "
            "first token and to the end, by model and hour; opening is everything before it can be asked.\n",
            "| records | bytes each | records/s | CPU µs each | bytes in the table | files | opening s | question s |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {one.records:,} | {one.size:,} | {one.rate:,.0f} | {one.cpu:.1f} | {one.table:,.0f} | {one.files} "
                f"| {one.opening:.2f} | {one.query:.2f} |"
                for one in result.compacting
            ),
        ]
    if result.kills:
        said += [
            "\n## Kills\n\nA process that appends is killed (SIGKILL) at random moments; closed segments are compacted "
            "meanwhile.\n",
            "| | kills | acknowledged | in the table | of them aborted | missing | twice |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| durability: {what} | {one.kills:,} | {one.acknowledged:,} | {one.records:,} | {one.aborted:,} "
                f"| {len(one.missing)} | {len(one.twice)} |"
                for what, one in result.kills.items()
            ),
        ]
    return "\n".join([*said, ""])


def known(path: Path) -> Result | None:
    """What was measured before, if it was."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def main() -> None:
    """Measure what was asked for, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--append", type=int, default=0, help="records to append with each durability")
    parser.add_argument("--passing", type=int, default=0, help="turns of gateways with and without a log")
    parser.add_argument("--rig", type=Path, default=Path("../shared/rig"), help="the folder with the rig's sources")
    parser.add_argument("--compact", type=int, default=0, help="records to compact")
    parser.add_argument("--text", type=int, default=TEXT_BYTES, help="bytes of text of those (default: 5000)")
    parser.add_argument("--kills", type=int, default=0, help="processes to kill with each durability")
    parser.add_argument("--more", action="store_true", help="add to the kills in --out, instead of replacing them")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path("bench/results/log.json"))
    args = parser.parse_args()
    if not (args.append or args.passing or args.compact or args.kills):
        args.append = 100_000
    versions = {name: version_of(name) for name in ("penstock", "msgspec", "xxhash", "deltalake", "duckdb", "uvloop")}
    result = known(args.out) or Result("", describe(), versions)
    result.date, result.machine, result.versions = datetime.date.today().isoformat(), describe(), versions
    if args.append:
        result.appending = measure_appending(args.folder, args.append)
    if args.passing:
        result.passing = measure_passing(args.rig, args.folder, args.passing)
    if args.compact:
        one = measure_compacting(args.folder, args.compact, args.text)
        others = [old for old in result.compacting if old.size // 100 != one.size // 100]
        result.compacting = sorted([*others, one], key=lambda row: -row.size)
    if args.kills:
        result.kills = measure_kills(args.folder, args.kills, result.kills if args.more else {})
    publish(args.out, result, page(result))
    print(page(result), end="")


if __name__ == "__main__":
    main()
