"""``serve`` from its start to its exit: a real process, with a fake worker in another."""

import argparse
import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.server import add_arguments, data_folder, listen, run
from gateway.settings import Settings
from tests.gateway.fake_worker import write_model_folder
from tests.gateway.harness import Answer, chat, read_answer, request_bytes, serving
from tests.gateway.harness import run as run_scenario

SERVE = """
import os, sys
import msgspec
from gateway.server import serve
from gateway.settings import Settings
fields, folder, *words = sys.argv[1:]
def command(settings, address):
    return [sys.executable, "-m", "tests.gateway.fake_worker", "--listen", address, "--folder", folder,
            "--parent-pid", str(os.getpid()), *words]
sys.exit(serve(msgspec.json.decode(fields, type=Settings), command))
"""
LONG = {"model": "fake", "prompt": "x" * 40, "max_tokens": 20, "stream": True}


class Served:
    """A server in a process of its own. ``url`` is known once `ready` has returned."""

    def __init__(self, folder: Path, *words: str, temporary: Path | None = None, **fields: Any) -> None:
        sent = json.dumps({"port": 0, **fields})
        environment = {**os.environ, "XDG_STATE_HOME": str(folder.parent / "state")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, sent, str(folder), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | ({"TMPDIR": str(temporary)} if temporary else {}),
        )
        self.port: int = fields.get("port", 0)

    def ready(self) -> str:
        if self.process.stdout is None:
            raise RuntimeError("no standard output")
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
        if found is None:
            raise RuntimeError(f"not ready: {line!r} {self.end()}")
        self.port = int(found[1])
        return line

    def worker(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit status, and what is left of standard output and error."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    async def open(self, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request_bytes("POST", "/v1/completions", body))
        return reader, writer

    async def ask(self, method: str, path: str, body: bytes | dict[str, Any] = b"") -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request_bytes(method, path, body, {"connection": "close"}))
        try:
            return await read_answer(reader)
        finally:
            writer.close()


@pytest.fixture
def started() -> Iterator[list[Served]]:
    """Whatever a test puts here is ended after it."""
    found: list[Served] = []
    yield found
    for served in found:
        if served.process.poll() is None:
            served.process.kill()
            served.process.communicate()


def test_it_says_that_it_is_ready_and_then_is(model_folder: Path, started: list[Served]) -> None:
    served = Served(model_folder)
    started.append(served)
    line = served.ready()
    assert re.fullmatch(
        r"Penstock is ready: http://127\.0\.0\.1:\d+/v1 "
        r"\(model fake, float32 on cpu, context 64 tokens, KV cache 4,096 tokens\)\n",
        line,
    )

    async def scenario() -> None:
        assert (await served.ask("GET", "/health/ready")).status == 200
        assert (await served.ask("POST", "/v1/chat/completions", chat())).status == 200

    run_scenario(scenario())
    worker = served.worker()
    served.signal(signal.SIGTERM)
    status, out, err = served.end()
    assert (status, out) == (0, "")
    assert "penstock: reading weights\n" in err
    assert "SIGTERM: finishing the running requests" in err
    assert "Traceback" not in err
    assert not worker.is_running()


def test_who_has_no_key_is_not_answered(
    model_folder: Path, started: list[Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEYS", "sk-one,sk-two")
    served = Served(model_folder, api_key_env="TEST_KEYS")
    started.append(served)
    served.ready()

    async def ask(*headers: str) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head, _, body = request_bytes("POST", "/v1/completions", LONG | {"stream": False}).partition(b"\r\n\r\n")
        writer.write(b"\r\n".join([head, *(header.encode() for header in headers)]) + b"\r\n\r\n" + body)
        answer = await read_answer(reader)
        writer.close()
        return answer

    async def scenario() -> None:
        for wrong in ((), ("authorization: Bearer sk-on",)):
            refused = await ask(*wrong)
            assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
        assert (await ask("authorization: Bearer sk-two")).status == 200

    run_scenario(scenario())


def test_it_is_alive_while_it_loads(model_folder: Path, started: list[Served]) -> None:
    served = Served(model_folder, "--never-loaded", port=free_port())
    started.append(served)

    async def scenario() -> None:
        while True:
            try:
                live = await served.ask("GET", "/health/live")
                break
            except ConnectionError:
                await asyncio.sleep(0.02)
        assert live.status == 200
        assert (await served.ask("GET", "/health/ready")).status == 503
        refused = await served.ask("POST", "/v1/chat/completions", chat())
        assert refused.status == 503
        assert refused.json["error"]["message"] == "The model is still being loaded."

    run_scenario(scenario())
    served.signal(signal.SIGTERM)
    status, out, _ = served.end()
    assert (status, out) == (0, "")


def test_a_port_in_use_is_said_before_anything_is_loaded(model_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        served = Served(model_folder, port=taken.getsockname()[1])
        status, out, err = served.end()
    assert (status, out) == (1, "")
    assert "penstock: error: can't listen on 127.0.0.1 port" in err
    assert "Address already in use" in err
    assert "reading weights" not in err


def test_a_worker_that_can_not_start_ends_it(model_folder: Path) -> None:
    status, out, err = Served(model_folder, "--fail", "no such folder").end()
    assert (status, out) == (1, "")
    assert err.index("no such folder") < err.index("the worker exited with status 3 before it was ready")
    assert "Traceback" not in err


def test_a_folder_without_a_tokenizer_ends_it(tmp_path: Path) -> None:
    status, out, err = Served(tmp_path).end()
    assert (status, out) == (1, "")
    assert "no tokenizer.json" in err
    assert "Traceback" not in err


def test_a_broken_template_ends_it(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    status, _, err = Served(folder).end()
    assert status == 1
    assert "not UTF-8" in err


def test_the_drain_finishes_what_runs(model_folder: Path, started: list[Served]) -> None:
    served = Served(model_folder, "--delay", "0.02")
    started.append(served)
    served.ready()

    async def scenario() -> None:
        reader, writer = await served.open(LONG)
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", served.port)
        begun = await reader.readuntil(b'"text":"x"')
        served.signal(signal.SIGTERM)
        rest = await reader.read()
        assert (begun + rest).count(b'"text":"x"') == 20
        assert b"data: [DONE]" in rest
        assert await idle_reader.read() == b""
        with pytest.raises(ConnectionError):
            await served.open(LONG)
        writer.close()
        idle.close()

    run_scenario(scenario())
    status, _, err = served.end()
    assert status == 0
    assert "drain timeout" not in err


def test_the_drain_is_bounded(model_folder: Path, started: list[Served]) -> None:
    served = Served(model_folder, "--delay", "0.2", drain_timeout=0.3)
    started.append(served)
    served.ready()

    async def scenario() -> None:
        reader, writer = await served.open({**LONG, "prompt": "x" * 60, "max_tokens": 1})
        slow, slow_writer = await served.open({**LONG, "max_tokens": 20})
        await slow.readuntil(b'"text":"x"')
        served.signal(signal.SIGTERM)
        rest = await slow.read()
        assert b"event: error\ndata: " in rest
        assert b"The server shut down before the answer was complete." in rest
        assert b"[DONE]" not in rest
        writer.close()
        slow_writer.close()
        await reader.read()

    run_scenario(scenario())
    status, _, err = served.end()
    assert status == 0
    assert "drain timeout" in err


def test_a_second_ctrl_c_exits_at_once(model_folder: Path, started: list[Served]) -> None:
    served = Served(model_folder, "--delay", "10", drain_timeout=60)
    started.append(served)
    served.ready()
    worker = served.worker()

    async def scenario() -> None:
        _, writer = await served.open(LONG)
        while not await in_flight(served):
            await asyncio.sleep(0.01)
        served.signal(signal.SIGINT)
        while True:  # until the port is closed: the first one has been seen
            try:
                (await asyncio.open_connection("127.0.0.1", served.port))[1].close()
                await asyncio.sleep(0.01)
            except ConnectionError:
                break
        served.signal(signal.SIGINT)
        writer.close()

    run_scenario(scenario())
    status, _, err = served.end()
    assert status == 130
    assert "Traceback" not in err
    assert not worker.is_running()


def test_a_worker_does_not_outlive_a_killed_gateway(model_folder: Path, started: list[Served]) -> None:
    served = Served(model_folder)
    started.append(served)
    served.ready()
    worker = served.worker()
    served.signal(signal.SIGKILL)
    served.end()
    worker.wait(10)


def test_a_thousand_streams_at_once(model_folder: Path, started: list[Served]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    served = Served(model_folder, "--delay", "0.05")
    started.append(served)
    served.ready()

    async def one() -> int:
        reader, writer = await served.open({**LONG, "max_tokens": 8})
        found = await read_answer(reader)
        writer.close()
        assert found.status == 200
        assert found.events[-1] == "[DONE]"
        return sum(len(json.loads(event)["choices"][0]["text"]) for event in found.events[:-1])

    async def scenario() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(1000)))

    assert run_scenario(scenario()) == [8] * 1000


@pytest.mark.parametrize(
    ("words", "message"), [(["--vllm-args", "{}"], "needs --engine vllm"), (["--port", "-1"], "--port must")]
)
def test_settings_that_make_no_sense(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(words)) == 2
    assert message in capsys.readouterr().err


def test_listening() -> None:
    with listen("127.0.0.1", 0) as one:
        assert one.getsockname()[1] > 0
        with pytest.raises(OSError, match="choose another with --host and --port"):
            listen("127.0.0.1", one.getsockname()[1])
    with pytest.raises(OSError, match=r"--host no\.such\.host\.invalid is no address"):
        listen("no.such.host.invalid", 0)


def test_where_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert data_folder(Settings()) == Path("/home/me/.local/state/penstock")
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    assert data_folder(Settings()) == Path("/home/me/.local/state/penstock")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert data_folder(Settings()) == Path("/state/penstock")
    assert data_folder(Settings(data_dir="here")) == Path("here")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert data_folder(Settings()) is None


def test_small_writes_are_not_held_back(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            _, writer = await gateway.connect()
            while not gateway.connections:
                await asyncio.sleep(0.001)
            (connection,) = gateway.connections
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()

    run_scenario(scenario())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def in_flight(served: Served) -> bool:
    page = (await served.ask("GET", "/metrics")).body.decode()
    return "penstock_requests_in_flight 2.0" in page


def test_a_rolling_restart_under_load_fails_nothing(model_folder: Path, started: list[Served]) -> None:
    served = Served(model_folder, "--delay", "0.01", replicas=2)
    started.append(served)
    served.ready()
    before = set(psutil.Process(served.process.pid).children())

    async def scenario() -> None:
        ended = asyncio.Event()
        answers: list[Answer] = []

        async def client(number: int) -> None:
            while not ended.is_set():
                answers.append(await served.ask("POST", "/v1/completions", {**LONG, "stream": number % 2 == 0}))

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        served.signal(signal.SIGUSR1)
        while before & set(psutil.Process(served.process.pid).children()) or not await workers_up(served, 2):
            await asyncio.sleep(0.02)
        ended.set()
        await asyncio.gather(*clients)
        assert {answer.status for answer in answers} == {200}
        for answer in answers:
            assert b"error" not in answer.body
            assert answer.body.count(b"x") >= 20

    run_scenario(scenario())
    served.signal(signal.SIGTERM)
    status, _, err = served.end()
    assert status == 0 and "Traceback" not in err and "silent" not in err
    assert err.count("restarting") == 2


async def workers_up(served: Served, count: int) -> bool:
    page = (await served.ask("GET", "/metrics")).body.decode()
    return len(re.findall(r'penstock_worker_up{worker="w\d"} 1.0', page)) == count


def test_several_gateways_share_port_and_workers(model_folder: Path, started: list[Served]) -> None:
    served = Served(model_folder, "--delay", "0.01", replicas=2, gateway_processes=2)
    started.append(served)
    served.ready()

    def gateways() -> list[psutil.Process]:
        children = psutil.Process(served.process.pid).children()
        return [child for child in children if child.is_running() and "gateway.processes" in child.cmdline()]

    async def scenario() -> None:
        first, second = gateways()
        streams = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(24)]
        for reader, writer in streams:
            body = {**LONG, "prompt": "x" * 30, "max_tokens": 30}
            writer.write(request_bytes("POST", "/v1/completions", body, {"connection": "close"}))
            await reader.readuntil(b'"text":"x"')
        first.kill()
        answers = await asyncio.gather(*(reader.read() for reader, _ in streams), return_exceptions=True)
        whole = [answer for answer in answers if isinstance(answer, bytes) and b"[DONE]" in answer]
        assert 0 < len(whole) < len(streams), "each had some"
        for _, writer in streams:
            writer.close()
        while len(gateways()) < 2:
            await asyncio.sleep(0.05)
        assert second in gateways()
        assert (await served.ask("POST", "/v1/chat/completions", chat())).status == 200

    run_scenario(scenario())
    served.signal(signal.SIGTERM)
    status, out, err = served.end()
    assert (status, out) == (0, "")
    assert "gateway process g" in err and "was ended by SIGKILL; starting another in 1 s" in err


def test_a_gateway_process_that_can_not_start_ends_it(model_folder: Path) -> None:
    status, out, err = Served(model_folder / "missing", gateway_processes=2).end()
    assert (status, out) == (1, "")
    assert "before it was ready" in err


def test_nothing_is_left_behind(model_folder: Path, started: list[Served], tmp_path: Path) -> None:
    served = Served(model_folder, temporary=tmp_path)
    started.append(served)
    served.ready()
    assert len(list(tmp_path.glob("penstock-*"))) == 1
    served.signal(signal.SIGINT)
    assert served.end()[0] == 0
    assert list(tmp_path.glob("penstock-*")) == []


@pytest.mark.parametrize(
    "begin", [b"GET / HTTP/1.1\r\nhost: test\r\nx-endless: ", b"GET /", b"GET / HTTP/1.1\r\n" + b"x-many: 1\r\n" * 9]
)
def test_an_endless_head_is_refused(model_folder: Path, begin: bytes) -> None:
    async def scenario() -> Answer:
        async with serving(model_folder) as gateway:
            reader, writer = await gateway.connect()
            writer.write(begin)
            for _ in range(33):
                writer.write(b"x" * 8192)
                await writer.drain()
            answer = await read_answer(reader)
            writer.close()
            return answer

    answer = run_scenario(scenario())
    assert answer.status == 400
    assert "256 KiB" in answer.json["error"]["message"]


def test_what_is_no_http_gets_an_error_object(model_folder: Path) -> None:
    async def scenario() -> Answer:
        async with serving(model_folder) as gateway:
            reader, writer = await gateway.connect()
            writer.write(b"\x16\x03\x01 this is TLS, or nonsense\r\n\r\n")
            answer = await read_answer(reader)
            writer.close()
            return answer

    answer = run_scenario(scenario())
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"
