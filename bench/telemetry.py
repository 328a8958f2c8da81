"""What do traces and metrics cost a request? ``python -m bench.telemetry`` times its recording with and without.

A request of 1 kB that passes through and its answer are recorded again and again, as the lane does it: with a log, with
a log and telemetry, with telemetry alone. CPU time is the whole process', with the thread that makes spans and sends
them to a collector in a process of its own; one batch goes out for 50 traces that are kept, so that at 1 % it is what a
process with 1,000 requests a second sends every five seconds.
"""

import argparse
import asyncio
import datetime
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import msgspec
import uvloop

from bench.machine import Machine, describe, version_of
from bench.publish import publish
from gateway.lane.scan import skim, tally_whole
from gateway.record.delivery import Delivery
from gateway.record.recorder import Recorder, RecordPlan
from gateway.record.recording import Recording
from gateway.server import COLLECT_AFTER
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.plan import TelemetryPlan
from gateway.telemetry.telemetry import Telemetry
from gateway.telemetry.trace import NOTHING

TARGET: Final = 5.0
_TOGETHER: Final = 64  # requests in a round of the event loop
_BATCH: Final = 50
_BODY: Final = msgspec.json.encode(
    {"model": "m", "messages": [{"role": "user", "content": "x" * 900}], "temperature": 0.7, "max_tokens": 100}
)
_ANSWER: Final = msgspec.json.encode(
    {
        "id": "c1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "y" * 350}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 80, "total_tokens": 280},
    }
)


_READ: Final = skim(_BODY)
_SAID: Final = tally_whole(_ANSWER)


class Side(NamedTuple):
    """What is on. ``share`` of the traces is kept; None: no telemetry."""

    name: str
    logs: bool
    share: float | None


LOG: Final = Side("log", True, None)
BOTH: Final = Side("log, telemetry at 1 %", True, 0.01)
UNKEPT: Final = Side("telemetry alone, at 0 %", False, 0.0)
ALONE: Final = Side("telemetry alone, at 1 %", False, 0.01)
ALL: Final = Side("telemetry alone, at 100 %", False, 1.0)
SIDES: Final = (LOG, BOTH, UNKEPT, ALONE, ALL)


class Result(msgspec.Struct, frozen=True):
    """CPU microseconds a request of each side, one a turn. ``date`` is ISO 8601."""

    date: str
    machine: Machine
    versions: dict[str, str]
    requests: int
    turns: dict[str, list[float]]
    lost: int

    def median(self, side: Side) -> float:
        return median(self.turns[side.name])

    @property
    def beside_a_log(self) -> float:
        """What telemetry adds to a request that is logged: the median over turns, each of which ran both."""
        pairs = zip(self.turns[BOTH.name], self.turns[LOG.name], strict=True)
        return median(both - log for both, log in pairs)


class _Client:
    """Takes what a lane writes."""

    def write(self, data: bytes) -> None: ...
    def done(self, close: bool) -> None: ...
    def abort(self) -> None: ...


def _take(ready: Connection) -> None:
    """Be a collector that takes all and looks at nothing."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def collector() -> Iterator[str]:
    """The address of a collector in another process."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_take, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def request(recorder: Recorder, number: int) -> None:
    """What the lane does for the record of one request, from its last byte to its answer's."""
    recording = Recording(recorder, f"req-{number:016x}", "/v1/chat/completions", NOTHING)
    delivery = Delivery(_Client()) if recorder.log is not None else None
    if recorder.telemetry is not None:
        recording.trace.lines  # noqa: B018  # what the upstream is sent
    recording.asked(_BODY, "team", _READ)
    recording.begin("m")
    recording.placed("a", "http://10.0.0.5:8000")
    recording.arrived(_ANSWER)
    recording.told(_SAID)
    if delivery is not None:
        delivery.hold()
        delivery.write(_ANSWER)
    recording.end(200, "ok", b"default", delivery.release if delivery is not None else None)
    if delivery is not None:
        delivery.done(False)


async def turn(side: Side, url: str, folder: Path, requests: int) -> tuple[float, int]:
    """CPU microseconds a request, and how many traces were lost."""
    metrics = Metrics()
    metrics.model("/v1/chat/completions", "m")
    telemetry = Telemetry(TelemetryPlan(url=url, share=side.share), metrics) if side.share is not None else None
    recorder = Recorder(RecordPlan(path=str(folder)) if side.logs else None, telemetry)
    recorder.start()
    await asyncio.sleep(0.05)
    begun = time.process_time()
    for number in range(requests):
        request(recorder, number)
        if number % _TOGETHER == 0:
            await asyncio.sleep(0)
            while telemetry is not None and telemetry.waiting > 10 * _BATCH:
                await asyncio.sleep(0.001)  # only where all are kept, and come faster than they ever would
    recorder.close()
    return (time.process_time() - begun) / requests * 1e6, telemetry.lost if telemetry is not None else 0


def measure(requests: int, turns: int) -> Result:
    """All sides, one after the other in each turn."""
    os.environ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = str(_BATCH)
    gc.set_threshold(*COLLECT_AFTER)  # as the server does
    found: dict[str, list[float]] = {side.name: [] for side in SIDES}
    lost = 0
    with collector() as url:
        for number in range(turns + 1):  # the first one only warms up
            for side in SIDES:
                count = requests if side is not ALL else max(1, requests // 20)
                with (
                    tempfile.TemporaryDirectory() as folder,
                    asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
                ):
                    cost, gone = runner.run(turn(side, url, Path(folder), count))
                lost += gone
                if number:
                    found[side.name].append(cost)
    versions = {name: version_of(name) for name in ("penstock", "opentelemetry-sdk", "protobuf")}
    return Result(datetime.date.today().isoformat(), describe(), versions, requests, found, lost)


def page(result: Result) -> str:
    """The figures, as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    lines = [
        "# Telemetry\n",
        f"{result.date}, {result.machine.cpu}, {result.machine.cores} cores; {versions}. Made by "
        "`python -m bench.telemetry`, on a machine that others use, too.\n",
        "CPU time of the recording of a request of 1 kB that passes through, and of the thread that sends its spans; "
        f"{len(result.turns[LOG.name])} turns of {result.requests:,} requests.\n",
        "| on | µs a request, median | least | most |",
        "| --- | --- | --- | --- |",
        "| nothing | 0 | 0 | 0 |",
        *(
            f"| {side.name} | {result.median(side):.1f} | {min(result.turns[side.name]):.1f} "
            f"| {max(result.turns[side.name]):.1f} |"
            for side in SIDES
        ),
        f"\nAt 1 %, telemetry costs {result.beside_a_log:.1f} µs beside a log (target: {TARGET:g}; the median of what "
        f"a turn's two sides differ by), and {result.median(ALONE):.1f} µs alone, with the recording that a log would "
        f"have needed anyway. {result.lost} traces were lost.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="of each side and turn (default: 10000)")
    parser.add_argument("--turns", type=int, default=15, help="(default: 15)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/telemetry.json"))
    args = parser.parse_args()
    result = measure(args.requests, args.turns)
    publish(args.out, result, page(result))
    print(page(result), end="")


if __name__ == "__main__":
    main()
