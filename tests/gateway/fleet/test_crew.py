"""Which workers a gateway is told to have, and what each gets of the machine."""

import asyncio
import os
from pathlib import Path

import pytest

from gateway.fleet.crew import Crew, Keeper, Place, recruit, share, visible_gpus, worker_secret
from gateway.fleet.worker import Worker
from gateway.fleet.worker_process import worker_command
from gateway.settings import Settings, SettingsError
from gateway.telemetry.metrics import Metrics
from tests.gateway.harness import run


def names(settings: Settings) -> list[str]:
    crew = recruit(settings, Path("/run/x"), worker_command, Metrics(), None)
    return [worker.name for worker in crew.workers]


def test_workers_have_short_names_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S", "secret")
    assert names(Settings(replicas=3)) == ["w0", "w1", "w2"]
    remote = Settings(worker=("tcp://10.0.0.5:9100", "unix:/run/a/w1.sock"), worker_secret_env="S")
    assert names(remote) == ["10.0.0.5:9100", "w1"]
    same = ("unix:/run/a/w.sock", "unix:/run/b/w.sock")
    assert names(Settings(worker=same)) == list(same)


def test_replicas_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.fleet.crew.visible_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)))
    assert share(Settings(), 0) == (Settings(), {})
    assert [share(Settings(replicas=2), index)[0].threads for index in range(2)] == [4, 4]
    assert share(Settings(replicas=16), 3)[0].threads == 1
    assert share(Settings(replicas=2, threads=7), 1)[0].threads == 7
    assert share(Settings(), 0, Place(others=3))[0].threads == 2


def test_replicas_have_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert visible_gpus() == ["3", "5"]
    found = [share(Settings(replicas=3), index) for index in range(3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in found] == ["3", "5", "3"]
    assert {settings.gpu_memory for settings, _ in found} == {0.45}
    assert share(Settings(replicas=2), 0)[0].gpu_memory is None
    assert share(Settings(replicas=2, device="cpu"), 0)[1] == {}
    assert share(Settings(), 0, Place(gpus=1, others=1))[1] == {"CUDA_VISIBLE_DEVICES": "5"}
    wide = Settings(engine="vllm", vllm_args='{"tensor_parallel_size": 2}')
    assert share(wide, 0, Place(gpus=1, others=1))[1] == {"CUDA_VISIBLE_DEVICES": "5,3"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter([path / "nvidia0", path / "nvidia1"]))
    assert visible_gpus() == ["0", "1"]


@pytest.mark.parametrize(
    ("endpoint", "others"),
    [
        ("tcp://127.0.0.1:5557", "tcp://127.0.0.1:5561"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("ipc:///run/events", "ipc:///run/events.2"),
    ],
)
def test_each_replica_publishes_at_a_place_of_its_own(endpoint: str, others: str) -> None:
    settings = Settings(replicas=3, kv_events=endpoint, kv_replay=endpoint)
    first, third = share(settings, 0)[0], share(settings, 2)[0]
    assert (first.kv_events, third.kv_events, third.kv_replay) == (endpoint, others, others)


def test_secrets_and_certificates_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tcp = ("tcp://10.0.0.5:1",)
    with pytest.raises(SettingsError, match="needs --worker-secret-env"):
        worker_secret(Settings(worker=tcp))
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(SettingsError, match="empty or not set"):
        worker_secret(Settings(worker=tcp, worker_secret_env="NOT_SET"))
    monkeypatch.setenv("SET", "x")
    assert worker_secret(Settings(worker=tcp, worker_secret_env="SET")) == b"x"
    assert worker_secret(Settings(worker=("unix:/w",))) == b""
    with pytest.raises(SettingsError, match="--worker-tls-ca"):
        names(Settings(worker=tcp, worker_secret_env="SET", worker_tls_ca=str(tmp_path / "none.pem")))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"worker": ("nowhere",)}, "--worker 'nowhere' is no address"),
        ({"worker": ("unix:/w", "unix:/w")}, "named twice"),
        ({"worker": ("unix:/w",), "replicas": 2}, "leave it out beside --worker"),
        ({"replicas": 0}, "--replicas must be at least 1"),
        ({"worker_timeout": 0.0}, "--worker-timeout must be"),
        ({"failover_timeout": -1.0}, "--failover-timeout must be"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings(**fields)  # type: ignore[arg-type]


class Noting(Keeper):
    """Notes what it is told."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.worker = Worker(name, Metrics())
        self._log = log
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        await self._stopped.wait()

    async def stop(self, timeout: float) -> None:
        self._log.append(f"stop {self.worker.name} {timeout:g}")
        self._stopped.set()

    async def restart(self, timeout: float) -> None:
        self._log.append(f"restart {self.worker.name}")
        await asyncio.sleep(0)
        self._log.append(f"restarted {self.worker.name}")

    def kill(self) -> None:
        self._log.append(f"kill {self.worker.name}")


def test_one_is_restarted_after_the_other() -> None:
    async def scenario() -> list[str]:
        log: list[str] = []
        crew = Crew([Noting("a", log), Noting("b", log)], 5.0)
        task = asyncio.create_task(crew.run())
        await asyncio.gather(crew.restart(1.0), crew.restart(1.0))
        greeted = asyncio.create_task(crew.greeted())
        crew.workers[1].greeted.set()
        await greeted
        crew.kill()
        await crew.stop(2.0)
        await task
        return log

    once = [f"{verb} {name}" for name in "ab" for verb in ("restart", "restarted")]
    assert run(scenario()) == [*once, *once, "kill a", "kill b", "stop a 2", "stop b 2"]
