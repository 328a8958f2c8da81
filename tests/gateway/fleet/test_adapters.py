"""Adapters: every worker loads them, and they are models of their own for clients."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.fleet.running_target import RunningTarget
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker_process import worker_command
from gateway.settings import Settings, SettingsError
from gateway.telemetry.metrics import Metrics
from tests.gateway.fake_worker import FakeWorker, prompt_ids
from tests.gateway.fleet.test_fleet import LARGE, PROMPT, SAMPLING, read, several
from tests.gateway.harness import run

ADAPTERS = {"legal": "/adapters/legal", "medical": "/adapters/medical"}
ABLE: dict[str, Any] = {"capabilities": ("adapters",)}


def test_every_worker_has_them_before_its_first_request_and_after_its_return(
    model_folder: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, ABLE, ABLE, adapters=ADAPTERS) as found:
            assert [fake.adapters for fake in found.fakes] == [ADAPTERS, ADAPTERS]
            first = found.fakes[0]
            first.adapters.clear()
            first.drop()
            await found.workers[0].lost.wait()
            found.workers[0].settled.clear()
            await found.workers[0].settled.wait()
            assert "w0" in found.fleet._placer.workers
            assert first.adapters == ADAPTERS

    run(scenario())


def test_an_answer_of_an_adapter_goes_on_with_it(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, ABLE, ABLE, adapters=ADAPTERS) as found:
            legal = found.models["fake"].adapted("legal", "legal")
            assert (legal.name, legal.parent, legal.embedding_size) == ("legal", "fake", 0)
            stream = legal.fleet.open()
            stream.submit(PROMPT, SAMPLING)
            first = await found.holder(stream)
            for _ in range(5):
                first.step()
            tokens = await read(stream, 5)
            first.drop()
            second = await found.holder(stream)
            second.auto = True
            second.kick()
            assert tokens + await read(stream) == PROMPT
            assert [asked.adapter for fake in (first, second) for asked in fake.submitted] == ["legal"] * 2
            first.auto = True
            assert await read(found.submit([7])) == [7]
            assert {asked.adapter for asked in first.submitted + second.submitted if prompt_ids(asked) == [7]} == {""}

    run(scenario())


def test_what_one_has_cached_is_of_no_use_to_another(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, LARGE | ABLE, LARGE | ABLE, adapters=ADAPTERS) as found:
            model = found.models["fake"]
            prompt, chains = [5] * 4000, set()
            for fleet in (model.fleet, model.fleet.adapted("legal"), model.fleet.adapted("medical")):
                stream = fleet.open()
                stream.submit(prompt, SAMPLING)
                await found.holder(stream)
                chains.add(bytes(model.fleet._chained[3]["16"]))
                stream.close()
            assert len(chains) == 3

    run(scenario())


@pytest.mark.parametrize(("able", "said"), [(False, "can't load any"), (True, "no such rank")])
def test_a_worker_that_can_not_gets_no_requests(model_folder: Path, tmp_path: Path, able: bool, said: str) -> None:
    async def scenario() -> None:
        fake = FakeWorker(model_folder, **(ABLE if able else {}))
        fake.no_adapter = "no such rank" if able else ""
        await fake.start(str(tmp_path / "w.sock"))
        address = f"unix:{tmp_path}/w.sock"
        settings = Settings(worker=(address,), adapter=("legal=/adapters/legal",))
        target = RunningTarget(settings, tmp_path, worker_command, Metrics(), lambda target, model: None)
        task = asyncio.create_task(target.run())
        with pytest.raises(SettingsError, match=f"--adapter legal=/adapters/legal: .*{said}"):
            await target.ready()
        assert target.models == {}
        await target.stop(0.0)
        await task
        await fake.stop()

    run(scenario())


@pytest.mark.parametrize("name", ["", "lawyer"])
def test_what_clients_see(model_folder: Path, tmp_path: Path, name: str) -> None:
    """On the command line, the model and its adapters; a target of a file with an adapter is that alone."""

    async def scenario() -> None:
        fake = FakeWorker(model_folder, **ABLE)
        fake.script = lambda submit: [1]
        await fake.start(str(tmp_path / "w.sock"))
        settings = Settings(worker=(f"unix:{tmp_path}/w.sock",), adapter=("legal=/adapters/legal",))
        seen: dict[str, ServedModel] = {}
        target = RunningTarget(
            settings, tmp_path, worker_command, Metrics(), lambda _, model: seen.update({model.name: model}), name=name
        )
        task = asyncio.create_task(target.run())
        await target.ready()
        assert {model.name: model.parent for model in seen.values()} == (
            {"fake": "fake"} if name else {"fake": "", "legal": "fake"}
        )
        stream = seen["fake" if name else "legal"].fleet.open()
        stream.submit([1, 2], SAMPLING)
        assert await read(stream) == [1]
        (asked,) = fake.submitted
        assert (asked.adapter, prompt_ids(asked)) == ("legal", [1, 2])
        await target.stop(0.0)
        await task
        await fake.stop()

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine": "vllm", "adapter": ("legal",)}, "write NAME=FOLDER"),
        ({"engine": "vllm", "adapter": ("=x",)}, "write NAME=FOLDER"),
        ({"engine": "vllm", "adapter": ("a=x", "a=y")}, "a name of its own"),
        ({"engine": "vllm", "served_model_name": "a"}, "a name of its own"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings(**{"adapter": ("a=x",), **fields})


def test_our_own_engine_merges_one_as_it_loads() -> None:
    settings = Settings(adapter=("adapter=./adapters/12",), served_model_name="adapter")
    command = worker_command(settings, "unix:/w.sock")
    assert command[command.index("--adapter") + 1] == "./adapters/12"
    assert "--adapters" not in command


def test_workers_are_told_how_many_there_are() -> None:
    settings = Settings(engine="vllm", adapter=("a=x", "b=y"))
    command = worker_command(settings, "unix:/w.sock")
    assert command[command.index("--adapters") + 1] == "2"
