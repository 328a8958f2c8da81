"""Workers over TCP: secrets, TLS, and a network that swallows or mangles what is sent. Real workers, real gateway."""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.connections import Connections, server_tls
from engine.link import PROTOCOL, Challenge, Hello, Welcome, frame
from gateway.fleet.remote import RemoteWorker
from gateway.fleet.worker import Worker
from gateway.telemetry.metrics import Metrics
from tests.engine.test_connections import certificate
from tests.gateway.fleet.processes import PATIENCE, WORKER, Serve, start
from tests.gateway.fleet.wire import Wire
from tests.gateway.harness import run

RIGHT = b"between us"
SECRET = {"FLEET_SECRET": RIGHT.decode()}
HELLO = Hello(PROTOCOL, "m", "f", 1, "cpu", "f", 1, 1, 1, 1, 1)
ASKED = {"prompt": "Far away, ", "max_tokens": 200, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a worker listens on TCP."""
    words = ["worker", *WORKER, "--listen", "tcp://127.0.0.1:0", "--secret-env", "FLEET_SECRET"]
    process = start(*words, state=tmp_path_factory.mktemp("state"), **SECRET)
    try:
        yield _address(process)
    finally:
        process.terminate()
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0 and "Traceback" not in err


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "listening on " in line:
            return line.rpartition(" ")[2].strip()
    raise RuntimeError("the worker did not start")


def test_answers_survive_a_network_that_swallows_and_one_that_mangles(address: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        one, other = Wire(address), Wire(address)
        async with one.laid() as first, other.laid() as second:
            served = Serve(
                *("--worker", first, "--worker", second, "--worker-secret-env", "FLEET_SECRET"),
                *("--worker-timeout", "1.5"),
                state=tmp_path,
                **SECRET,
            )
            with await asyncio.to_thread(served.ready):
                while await served.metric("penstock_worker_up") < 2:
                    await asyncio.sleep(0.05)
                undisturbed = await (await served.stream(ASKED)).read()
                for harm in ("half-open", "garbage"):
                    streams = [await served.stream(ASKED) for _ in range(2)]
                    for stream in streams:
                        await stream.read(10)
                    moved = await served.metric("penstock_requests_moved_total")
                    for wire in (one,) if harm == "half-open" else (one, other):
                        if harm == "half-open":
                            wire.open.clear()
                        else:
                            wire.garbage = b"\xff" * 64
                    for stream in streams:
                        await stream.read()
                        assert (stream.error, stream.texts) == ("", undisturbed.texts)
                    if harm == "half-open":
                        one.open.set()
                    else:
                        assert await served.metric("penstock_requests_moved_total") > moved
                    while await served.metric("penstock_worker_up") < 2:
                        await asyncio.sleep(0.05)
                err = await asyncio.to_thread(served.end)
                assert "Traceback" not in err
                assert "has been silent" in err and "what is no message" in err

    run(scenario(), PATIENCE)


def test_a_connection_that_carries_nothing_is_given_up(address: str, tmp_path: Path) -> None:
    """Half-open before the worker has said what it is: nothing was promised, nothing breaks, nothing ever comes."""

    async def scenario() -> None:
        silent = Wire(address)
        silent.open.clear()
        async with silent.laid() as first:
            served = Serve(
                *("--worker", first, "--worker", address, "--worker-secret-env", "FLEET_SECRET"),
                *("--worker-timeout", "0.5"),
                state=tmp_path,
                **SECRET,
            )
            with await asyncio.to_thread(served.ready):
                assert (await served.ask({"prompt": "a", "max_tokens": 1})).status == 200
                while silent.connections < 2:
                    await asyncio.sleep(0.02)
                silent.open.set()
                while await served.metric("penstock_worker_up") < 2:
                    await asyncio.sleep(0.02)
                err = await asyncio.to_thread(served.end)
                assert "Traceback" not in err
                assert err.count("it said nothing for 0.5 s") == 1

    run(scenario(), PATIENCE)


async def reason_of(address: str, secret: bytes, tls: ssl.SSLContext | None) -> str:
    """Why a worker was lost, or empty: it has said what it is."""
    worker = Worker("w", Metrics())
    try:
        await worker.connect(address, secret, tls)
    except OSError as error:
        return str(error)
    greeted, lost = asyncio.ensure_future(worker.greeted.wait()), asyncio.ensure_future(worker.lost.wait())
    await asyncio.wait({greeted, lost}, return_when=asyncio.FIRST_COMPLETED)
    reason = worker.reason
    greeted.cancel()
    worker.close()
    await lost
    return reason


@contextmanager
def listening(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """What a worker listens with, where it says hello to whoever it lets in."""
    connections = Connections("tcp://127.0.0.1:0", secret=RIGHT, tls=tls)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            assert list(connections.poll(0.01)) == []
            for connection in connections.arrived:
                connections.send(connection, HELLO)
            connections.arrived.clear()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield connections.address
    finally:
        ended.set()
        thread.join()
        connections.close()


def test_who_may_use_a_worker(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)

    async def scenario(plain: str, guarded: str) -> None:
        trusting = ssl.create_default_context(cafile=str(cert))
        assert await reason_of(plain, RIGHT, None) == ""
        assert await reason_of(guarded, RIGHT, trusting) == ""
        assert "perhaps the secrets differ" in await reason_of(plain, b"a guess", None)
        assert "perhaps the secrets differ" in await reason_of(guarded, b"a guess", trusting)
        assert "this gateway has no secret" in await reason_of(plain, b"", None)
        assert "certificate verify failed" in await reason_of(guarded, RIGHT, ssl.create_default_context())

    with listening() as plain, listening(server_tls(str(cert), str(key))) as guarded:
        run(scenario(plain, guarded))


def test_a_worker_that_does_not_know_the_secret_is_left() -> None:
    async def scenario() -> None:
        said: list[bytes | bytearray] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for message in said:
                writer.write(message)
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        hello = frame(HELLO)
        said[:] = [frame(Challenge(bytes(32))), frame(Welcome(bytes(32))), hello]
        assert "it doesn't know the secret" in await reason_of(address, b"secret", None)
        said[:] = [hello]
        assert "before it has proved" in await reason_of(address, b"secret", None)
        server.close()
        await server.wait_closed()

    run(scenario(), PATIENCE)


def test_one_that_nobody_can_reach_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        keeper = RemoteWorker(Worker("w", Metrics()), "tcp://127.0.0.1:1", b"secret")
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.5)
        await keeper.stop(0.0)
        await task

    run(scenario(), PATIENCE)
    assert caplog.text.count("can't be reached") == 1
