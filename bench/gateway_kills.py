"""Is every answer on record, whatever kills the gateway? ``python -m bench.gateway_kills --kills 1000``.

A whole gateway with a request log, in front of an upstream, is killed with SIGKILL at a random moment of its life, over
and over, while clients ask it. Each request has an id of its own; those whose answer was complete at the client have
to be in the table in the end, each once. Gateways are forked from a process that has everything imported, so that a
life takes half a second.
"""

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from bench.lane.rig import free_port, wait_for
from bench.machine import Machine, describe, version_of
from bench.publish import publish
from flywheel.maintenance import maintain
from flywheel.query import connect
from gateway.server import serve
from gateway.settings import Settings

CLIENTS = 16
_EVERY = 50  # kills, between two compactions
_BODY = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "x" * 4000}], "user": "u"})
_ANSWER = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "y" * 800}}],
}


class Kills(msgspec.Struct):
    """What came of it.

    Attributes:
        kills: how often a gateway was killed.
        answered: requests whose answer was complete at the client.
        recorded: records in the table: there are more, for the gateway may die between the record and the answer.
        aborted: those of requests that were under way.
        missing: answered, but not recorded; ``twice``: in the table more than once. Both have to be 0.
        seconds: how long it took.
    """

    date: str
    machine: Machine
    versions: dict[str, str]
    durability: str
    kills: int
    answered: int
    recorded: int
    aborted: int
    missing: int
    twice: int
    seconds: float


def run(folder: Path, kills: int, durability: str = "os", seed: int = 0, longest: float = 0.4) -> Kills:
    """Kill so many gateways, each within ``longest`` seconds after it was ready."""
    began = time.monotonic()
    draw = random.Random(seed)
    port, upstream_port = free_port(), free_port()
    log = folder / "log"
    file = folder / "penstock.yaml"
    file.write_text(
        "models: {chat: {target: a}}\n"
        f"targets: {{a: {{engine: openai, urls: ['http://127.0.0.1:{upstream_port}']}}}}\n"
        f"log: {{path: {log}, durability: {durability}}}\n"
    )
    settings = Settings(config=str(file), port=port, data_dir=str(folder / "data"), log_level="error")
    upstream = _fork(lambda: asyncio.run(_upstream(upstream_port)), folder)
    answered: set[str] = set()
    try:
        wait_for(upstream_port)
        for number in range(kills):
            gateway = _fork(lambda: serve(settings), folder)
            try:
                wait_for(port)
                asyncio.run(_life(port, number, gateway, draw.uniform(0.0, longest), answered))
            finally:
                _kill(gateway)
            if number % _EVERY == _EVERY - 1:
                maintain(log)
        gateway = _fork(lambda: serve(settings), folder)  # it closes what the last one left open
        wait_for(port)
        os.kill(gateway, signal.SIGTERM)
        os.waitpid(gateway, 0)
    finally:
        _kill(upstream)
    maintain(log)
    with connect(log, None) as database:
        ids = Counter(dict(database.execute("SELECT request_id, count(*) FROM records GROUP BY 1").fetchall()))
        [[aborted]] = database.execute("SELECT count(*) FROM records WHERE outcome = 'aborted'").fetchall()
    return Kills(
        date=datetime.date.today().isoformat(),
        machine=describe(),
        versions={name: version_of(name) for name in ("deltalake", "uvloop")},
        durability=durability,
        kills=kills,
        answered=len(answered),
        recorded=sum(ids.values()),
        aborted=aborted,
        missing=len(answered - ids.keys()),
        twice=sum(count > 1 for count in ids.values()),
        seconds=round(time.monotonic() - began, 1),
    )


async def _life(port: int, number: int, gateway: int, seconds: float, answered: set[str]) -> None:
    """Ask one gateway until it is killed after so many seconds; what was answered goes into the set."""
    clients = [asyncio.create_task(_client(port, f"{number}-{client}", answered)) for client in range(CLIENTS)]
    await asyncio.sleep(seconds)
    os.kill(gateway, signal.SIGKILL)
    await asyncio.gather(*clients, return_exceptions=True)


async def _client(port: int, name: str, answered: set[str]) -> None:
    """Ask one question after the other, until nobody answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for count in range(1_000_000):
            request_id = f"k-{name}-{count}"
            body = _BODY if count % 2 else _BODY[:-1] + ', "stream": true}'
            writer.write(
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: {request_id}\r\n"
                f"content-length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if b"content-length: " in head:
                size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(size)
            else:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            if head.startswith(b"HTTP/1.1 200"):
                answered.add(request_id)
    finally:
        writer.close()


async def _upstream(port: int) -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", port, limit=1 << 20)
    await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    whole = json.dumps(_ANSWER).encode()
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "yyyy"}}]}\n\n'
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int((head.lower().partition(b"content-length: ")[2] or b"0").partition(b"\r\n")[0])
            body = await reader.readexactly(size)
            if not body:
                known = b'{"object": "list", "data": [{"id": "chat", "object": "model"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                             % (len(known), known))  # fmt: skip
            elif b'"stream": true' in body:
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for _ in range(3):
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await asyncio.sleep(0.001)
                writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                             % (len(whole), whole))  # fmt: skip
    writer.close()


def _fork(work: object, folder: Path) -> int:
    """Do something in a process of its own, which says what it has to say in a file."""
    pid = os.fork()
    if pid:
        return pid
    try:
        out = os.open(folder / "said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        assert callable(work)
        work()
    finally:
        os._exit(0)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def render(result: Kills) -> str:
    """The result as Markdown."""
    return (
        "# Killing a gateway that is asked\n\n"
        f"{result.date}, {result.machine.cores} cores of an {result.machine.cpu}. "
        f"`python -m bench.gateway_kills --kills {result.kills}`, {CLIENTS} clients, "
        f"`durability: {result.durability}`, {result.seconds:,.0f} s.\n\n"
        "| kills | answered | records in the table | of these aborted | answered, not recorded | in the table twice |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        f"| {result.kills:,} | {result.answered:,} | {result.recorded:,} | {result.aborted:,} | {result.missing:,} "
        f"| {result.twice:,} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="how many gateways die (default %(default)s)")
    parser.add_argument("--durability", choices=("os", "disk"), default="os", help="of the log (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which they do")
    parser.add_argument("--out", type=Path, help="where the result goes: a file in .json, and the page beside it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), args.kills, args.durability, args.seed)
    if args.out is not None:
        publish(args.out, result, render(result))
    print(render(result))


if __name__ == "__main__":
    main()
