"""The supervisor of a worker's process, with fake workers in processes of their own."""

import asyncio
import os
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from engine.link import Progress, Sampling
from gateway.fleet.native import WorkerLost
from gateway.fleet.worker import Worker
from gateway.fleet.worker_process import (
    Backoff,
    WorkerProcess,
    WorkerStartError,
    describe_exit,
    runtime_directory,
    worker_command,
)
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.gateway.harness import run

SAMPLING = Sampling(max_tokens=4)


class Supervised:
    """A worker, its supervisor, and the supervisor's task."""

    def __init__(self, folder: Path, directory: Path, *words: str) -> None:
        self.metrics = Metrics()
        self.progress: list[Progress] = []
        self.worker = Worker("w0", self.metrics, self.progress.append)
        address = f"unix:{directory}/w0.sock"
        command = [sys.executable, "-m", "tests.gateway.fake_worker", "--listen", address, "--folder", str(folder)]
        self.process = WorkerProcess(
            self.worker, [*command, *words], address, self.metrics, Backoff(first=0.01, most=0.02)
        )

    async def answer(self) -> list[int]:
        stream = self.worker.open()
        stream.submit([1, 2], SAMPLING)
        tokens: list[int] = []
        while stream.open:
            for output in await stream.next():
                tokens += output.tokens
        return tokens

    def restarts(self) -> float:
        found = self.metrics.registry.get_sample_value("penstock_worker_restarts_total", {"worker": "w0"})
        return found or 0.0


@asynccontextmanager
async def supervised(folder: Path, *words: str) -> AsyncIterator[Supervised]:
    with runtime_directory() as directory:
        found = Supervised(folder, directory, *words)
        task = asyncio.create_task(found.process.run())
        try:
            yield found
        finally:
            await found.process.stop(1.0)
            await task


def test_it_starts_answers_and_drains(model_folder: Path) -> None:
    async def scenario() -> None:
        async with supervised(model_folder) as found:
            await found.worker.greeted.wait()
            assert found.worker.ready
            assert found.progress == [Progress("reading weights", 1, 2)]
            assert await found.answer() == [1, 2]
            pid = found.process.pid
        assert pid is not None
        assert not psutil.pid_exists(pid)
        assert found.worker.state == "shutting down"
        assert found.restarts() == 0

    run(scenario())


def test_one_that_dies_is_started_again(model_folder: Path) -> None:
    async def scenario() -> None:
        async with supervised(model_folder) as found:
            await found.worker.greeted.wait()
            for deaths in (1, 2):
                first = found.process.pid
                assert first is not None
                os.kill(first, signal.SIGKILL)
                await found.worker.lost.wait()
                with pytest.raises(WorkerLost, match="the worker is restarting"):
                    found.worker.open().submit([1], SAMPLING)
                while not found.worker.ready:
                    await asyncio.sleep(0.01)
                assert found.process.pid != first
                assert found.restarts() == deaths
                assert await found.answer() == [1, 2]

    run(scenario())


def test_one_that_dies_fails_what_it_had(model_folder: Path) -> None:
    async def scenario() -> None:
        async with supervised(model_folder, "--delay", "30") as found:
            await found.worker.greeted.wait()
            stream = found.worker.open()
            stream.submit([1, 2], SAMPLING)
            assert found.process.pid is not None
            os.kill(found.process.pid, signal.SIGKILL)
            with pytest.raises(WorkerLost):
                await stream.next()

    run(scenario())


def test_one_whose_link_breaks_is_replaced(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.fleet.worker_process._KILL_AFTER", 0.05)

    async def scenario() -> None:
        async with supervised(model_folder) as found:
            await found.worker.greeted.wait()
            first = found.process.pid
            assert first is not None
            found.worker.close()
            await found.worker.lost.wait()
            while not found.worker.ready:
                await asyncio.sleep(0.01)
            assert found.process.pid != first
            assert not psutil.pid_exists(first)
            monkeypatch.undo()

    run(scenario())


def test_one_that_never_gets_ready_is_not_tried_again(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        with runtime_directory() as directory:
            found = Supervised(model_folder, directory, "--fail", "no such model")
            with pytest.raises(WorkerStartError, match="exited with status 3 before it was ready") as failed:
                await found.process.run()
            assert failed.value.status == 3

    run(scenario())
    assert "no such model" in capfd.readouterr().err


def test_one_that_will_not_drain_is_ended(model_folder: Path) -> None:
    async def scenario() -> None:
        async with supervised(model_folder, "--delay", "30") as found:
            await found.worker.greeted.wait()
            found.worker.open().submit([1, 2], SAMPLING)
            await found.process.stop(0.05)
            assert found.process.pid is not None
            assert not psutil.pid_exists(found.process.pid)

    run(scenario())


def test_a_cancelled_supervisor_takes_its_worker_along(model_folder: Path) -> None:
    async def scenario() -> None:
        with runtime_directory() as directory:
            found = Supervised(model_folder, directory)
            task = asyncio.create_task(found.process.run())
            await found.worker.greeted.wait()
            pid = found.process.pid
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pid is not None
            assert not psutil.pid_exists(pid)

    run(scenario())


def test_pauses_double_up_to_a_limit_and_start_over() -> None:
    backoff = Backoff()
    assert [backoff.after(1.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.after(60.0) == 1
    assert backoff.after(1.0) == 2


def test_the_command_says_what_is_set_and_nothing_else() -> None:
    parent = ["--parent-pid", str(os.getpid())]
    start = [sys.executable, "-P", "-m", "engine"]
    auto = ["--device", "auto", "--dtype", "auto", "--quantization", "none", "--kv-dtype", "auto"]
    assert worker_command(Settings(), "unix:/w") == [*start, "--listen", "unix:/w", *parent, *auto]
    everything = Settings(
        model="m",
        served_model_name="n",
        device="cpu",
        dtype="float32",
        quantization="int8",
        max_model_len=1,
        max_running=2,
        kv_dtype="fp8",
        kv_memory=3,
        gpu_memory=0.8,
        block_size=4,
        threads=5,
        ttft=0.5,
        tpot=0.25,
        kv_events="tcp://127.0.0.1:1",
        kv_replay="tcp://127.0.0.1:2",
    )
    said = " ".join(worker_command(everything, "unix:/w")[len(start) :])
    assert said == (
        f"m --listen unix:/w --parent-pid {os.getpid()} --name n --device cpu --dtype float32 "
        "--quantization int8 --kv-dtype fp8 --max-model-len 1 --max-running 2 --kv-memory 3 --gpu-memory 0.8 "
        "--block-size 4 --threads 5 --ttft 0.5 --tpot 0.25 --kv-events tcp://127.0.0.1:1 --kv-replay tcp://127.0.0.1:2"
    )


def test_the_worker_understands_its_command() -> None:
    import argparse

    from engine.options import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    command = worker_command(Settings(model="m", served_model_name="n", kv_memory=2**30, ttft=0.5), "unix:/w")
    args = parser.parse_args(command[4:])
    assert (args.model, args.name, args.kv_memory, args.ttft) == ("m", "n", 2**30, 0.5)
    assert (args.listen, args.parent_pid) == ("unix:/w", os.getpid())


def test_the_runtime_directory_is_private_and_goes() -> None:
    with runtime_directory() as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        (directory / "w0.sock").touch()
    assert not directory.exists()


def test_a_socket_path_fits_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with runtime_directory() as directory:
        assert len(str(directory / "w0.sock")) < 108
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exited with status 0"), (3, "exited with status 3"), (-9, "was ended by SIGKILL"), (-99, "by signal 99")],
)
def test_an_end_in_words(status: int, words: str) -> None:
    assert words in describe_exit(status)
