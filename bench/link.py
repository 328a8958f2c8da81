"""How many tokens/s go through one gateway core? ``python -m bench.link`` sends it steps from a worker without a model.

A process that plays the worker sends one `Step` frame for all streams, again and again, on a schedule that adds up to
100,000 tokens/s. The gateway's part is measured in two depths: *link*, where tasks read what the fleet hands them, and
*http*, where the same gateway as in ``penstock serve`` detokenises and sends each token to a client (a third process)
as a server-sent event. What counts is the CPU time of the gateway's process alone, for each token.
"""

import argparse
import asyncio
import datetime
import gc
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
import uvloop
from uvicorn.server import ServerState

from bench.machine import Machine, describe
from engine.link import PROTOCOL, Finish, FrameReader, Hello, Output, Sampling, Step, Submit, decode_to_worker, frame
from gateway.api.context import Context
from gateway.app import App
from gateway.fleet.fleet import Fleet
from gateway.fleet.native import OutputStream
from gateway.fleet.roster import Roster
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker import Worker
from gateway.http_protocol import HttpProtocol
from gateway.server import COLLECT_AFTER, http_config, listen
from gateway.telemetry.metrics import Metrics

_FOLDER: Final = Path(__file__).resolve().parents[1] / "engine" / "demo" / "model"
_MODEL: Final = "bench"


class Round(msgspec.Struct, frozen=True):
    """One run: ``tokens`` to ``streams`` took the gateway ``cpu`` seconds, and ``wall`` seconds passed meanwhile."""

    depth: str
    streams: int
    tokens: int
    offered: float
    cpu: float
    wall: float


class Report(msgspec.Struct, frozen=True):
    """Every round, and where they were run; ``date`` is ISO 8601, UTC. ``offered`` is in tokens/s."""

    date: str
    machine: Machine
    rounds: list[Round]


def play_worker(path: str, streams: int, steps: int, offered: float) -> None:
    """Listen at ``path``, take so many requests, and give each a token a step."""
    hello = Hello(
        protocol=PROTOCOL,
        model=_MODEL,
        folder=str(_FOLDER),
        pid=0,
        device="cpu",
        dtype="none",
        max_model_len=4096,
        vocab_size=8192,
        block_size=16,
        kv_tokens=1 << 24,
        max_running=streams,
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connection, _ = listener.accept()
        connection.sendall(frame(hello))
        reader, ids = FrameReader(), list[int]()
        while len(ids) < streams:
            messages = map(decode_to_worker, reader.feed(connection.recv(1 << 20)))
            ids += [message.id for message in messages if isinstance(message, Submit)]
        due = time.perf_counter()
        for step in range(steps):
            finish: Finish | None = "length" if step == steps - 1 else None
            outputs = [Output(id, [300 + (id + 7 * step) % 4000], [-0.5], [0.5], finish) for id in ids]
            data = frame(Step(outputs, 0.01))
            due += streams / offered
            time.sleep(max(0.0, due - time.perf_counter()))
            connection.sendall(data)
        connection.recv(1)


def play_client(port: int, streams: int, steps: int) -> None:
    """Ask for so many streamed completions at once, and read all to their end."""

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = {"model": _MODEL, "prompt": [300, 301, 302], "max_tokens": steps, "stream": True, "ignore_eos": True}
        data = msgspec.json.encode(body)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: b\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        tail = b""
        while data := await reader.read(1 << 18):
            tail = (tail + data)[-200:]
        if b"[DONE]" not in tail:
            raise RuntimeError(f"an answer ended with {tail!r}")
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(streams)))

    uvloop.run(all_of_them())


async def _read(stream: OutputStream) -> None:
    while stream.open:
        await stream.next()


async def _through_link(fleet: Fleet, streams: int, steps: int) -> tuple[float, float]:
    """CPU and wall seconds from the first token to the last."""
    asked = [fleet.open() for _ in range(streams)]
    for stream in asked:
        stream.submit([300, 301, 302], Sampling(max_tokens=steps))
    await asked[0].next()
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*map(_read, asked))
    return time.process_time() - cpu, time.perf_counter() - wall


async def _through_http(context: Context, streams: int, steps: int) -> tuple[float, float]:
    """The same, with clients of another process; their requests' heads and ends are not counted."""
    config = http_config(App(context))
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    with listen("127.0.0.1", 0) as listener:
        server = await loop.create_server(
            lambda: HttpProtocol(config=config, server_state=state, app_state={}), sock=listener
        )
        clients = multiprocessing.get_context("spawn").Process(
            target=play_client, args=(listener.getsockname()[1], streams, steps)
        )
        clients.start()
        fleet = context.models[_MODEL].fleet
        (worker,) = fleet.workers.values()
        while context.queued or not context.in_flight:
            await asyncio.sleep(0.001)
        cpu, wall = time.process_time(), time.perf_counter()
        while worker.requests:
            await asyncio.sleep(0.01)
        spent = time.process_time() - cpu, time.perf_counter() - wall
        while clients.is_alive():
            await asyncio.sleep(0.01)
        server.close()
    if clients.exitcode:
        raise RuntimeError("the clients failed")
    return spent


def run_round(depth: str, streams: int, steps: int, offered: float) -> Round:
    """One round with a worker of its own."""

    async def scenario(path: str) -> tuple[float, float]:
        metrics = Metrics()
        context = Context(max_queue=1 << 20, max_body=1 << 20, metrics=metrics)
        roster = Roster(context.models, lambda name: Fleet(name, metrics), ServedModel.load)
        worker = Worker("w0", metrics, watcher=roster)
        while True:
            try:
                await worker.connect(f"unix:{path}")
                break
            except OSError:
                await asyncio.sleep(0.02)
        await worker.greeted.wait()
        await roster.loaded()
        model = context.models[_MODEL]
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)  # as the server does
        try:
            if depth == "link":
                return await _through_link(model.fleet, streams, steps)
            return await _through_http(context, streams, steps)
        finally:
            worker.close()
            model.close()

    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/w.sock"
        worker = multiprocessing.get_context("spawn").Process(target=play_worker, args=(path, streams, steps, offered))
        worker.start()
        cpu, wall = uvloop.run(scenario(path))
        worker.join()
    return Round(depth, streams, streams * (steps - 1), offered, cpu, wall)


def markdown(report: Report) -> str:
    """The table of a report: medians over the rounds of each kind."""
    lines = [
        "# Tokens through one gateway core",
        "",
        f"`python -m bench.link`, {report.date}, {report.machine.cpu}, {report.machine.cores} cores. CPU time of the",
        "gateway's process alone; medians.",
        "",
        "| depth | streams | offered tokens/s | delivered tokens/s | CPU µs/token | tokens/s a core could |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key in dict.fromkeys((one.depth, one.streams) for one in report.rounds):
        rounds = [one for one in report.rounds if (one.depth, one.streams) == key]
        cpu = median(one.cpu / one.tokens for one in rounds)
        delivered = median(one.tokens / one.wall for one in rounds)
        lines.append(
            f"| {key[0]} | {key[1]} | {rounds[0].offered:,.0f} | {delivered:,.0f} | {1e6 * cpu:.2f} | {1 / cpu:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.link", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each kind (default: 3)")
    parser.add_argument("--offered", type=float, default=100_000, help="tokens/s in all (default: 100000)")
    parser.add_argument("--tokens", type=int, default=400_000, help="of each round (default: 400000)")
    parser.add_argument("--out", type=Path, help="write link.json and link.md into this folder")
    args = parser.parse_args(argv)
    rounds = [
        run_round(depth, streams, args.tokens // streams, args.offered)
        for _ in range(args.rounds)
        for depth in ("link", "http")
        for streams in (64, 256, 1024)
    ]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    report = Report(now, describe(), rounds)
    print(markdown(report))
    if args.out is not None:
        (args.out / "link.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        (args.out / "link.md").write_text(markdown(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
