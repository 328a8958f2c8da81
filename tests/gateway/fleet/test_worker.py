"""What the gateway knows of a worker, over several processes' lives."""

from pathlib import Path

import pytest

from engine.link import Load, Sampling
from gateway.fleet.native import WorkerLost
from gateway.fleet.worker import Worker
from gateway.telemetry.metrics import Metrics
from tests.gateway.fake_worker import FakeWorker
from tests.gateway.harness import run


def test_it_outlives_its_processes(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = Worker("w0", Metrics())
        with pytest.raises(WorkerLost, match="the worker is starting"):
            worker.open().submit([1], Sampling(max_tokens=1))
        for life in range(2):
            fake = FakeWorker(model_folder, pid=life)
            path = str(tmp_path / f"{life}.sock")
            await fake.start(path)
            await worker.connect(f"unix:{path}")
            while not worker.ready:
                await worker.greeted.wait()
                worker.greeted.clear()
            assert worker.hello is not None
            assert worker.hello.pid == life
            stream = worker.open()
            stream.submit([1], Sampling(max_tokens=1))
            assert (await stream.next())[0].finish == "stop"
            await fake.stop()
            await worker.lost.wait()
            assert worker.state == "restarting"
            with pytest.raises(WorkerLost, match="the worker is restarting"):
                worker.open().submit([1], Sampling(max_tokens=1))

    run(scenario())


def test_its_load_is_that_of_the_process_that_lives(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = Worker("w0", Metrics())
        fake = FakeWorker(model_folder)
        await fake.start(str(tmp_path / "w.sock"))
        await worker.connect(f"unix:{tmp_path}/w.sock")
        await worker.greeted.wait()
        worker.on_load(Load(waiting=1, running=0, waiting_tokens=9, kv_used=0, kv_total=9, backlog=2.5))
        assert worker.backlog == 2.5
        await fake.stop()
        await worker.lost.wait()
        assert worker.backlog == 0.0

    run(scenario())


def test_draining_is_passed_on(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = Worker("w0", Metrics())
        worker.drain()  # nobody is there: nothing to tell
        fake = FakeWorker(model_folder)
        await fake.start(str(tmp_path / "w.sock"))
        await worker.connect(f"unix:{tmp_path}/w.sock")
        await worker.greeted.wait()
        worker.drain()
        await fake.ended.wait()
        await fake.stop()
        await worker.lost.wait()
        assert worker.state == "shutting down"

    run(scenario())
