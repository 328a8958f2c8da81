"""Which store the configuration asks for, and that it stays the same."""

import asyncio
import sys
from pathlib import Path

import pytest

from gateway.api.context import Context, ReloadError
from gateway.config.keys import Counting
from gateway.fleet.worker_process import worker_command
from gateway.serving import Serving
from gateway.settings import Settings, SettingsError
from gateway.traffic.keys import hash_key
from gateway.traffic.limits.counting import LocalStore
from gateway.traffic.limits.redis_store import RedisStore
from gateway.traffic.limits.shared import SharedStore
from gateway.traffic.limits.stores import make_store
from tests.gateway.lane.upstream import Upstream

MODELS = "models: {m: {target: t}}\ntargets: {t: {engine: openai, urls: ['http://127.0.0.1:9']}}\n"
KEY = f"keys: [{{id: a, hash: '{hash_key(b'sk')}'}}]\n"
LIMITED = KEY.replace("}]", ", limits: {requests: 1/min}}]")


def test_processes_of_a_host_count_in_the_data_folder(tmp_path: Path) -> None:
    store = make_store(Counting(), tmp_path)
    assert isinstance(store, SharedStore)
    assert (tmp_path / "limits").is_dir()
    store.close()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="limits can't be counted in"):
        make_store(Counting(), tmp_path / "file")


def test_without_a_data_folder_a_process_counts_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(make_store(Counting(), None), LocalStore)
    assert "forgotten when it ends" in caplog.text


def test_redis_is_found_in_the_file_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setenv("SOME_REDIS", "redis://:secret@127.0.0.1:9")
        for counting in (Counting(redis="redis://127.0.0.1:9"), Counting(redis_env="SOME_REDIS")):
            store = make_store(counting, None)
            assert isinstance(store, RedisStore)
            await store.leave()
        monkeypatch.setenv("SOME_REDIS", "http://x")
        with pytest.raises(SettingsError, match="limits can't be counted in Redis: "):
            make_store(Counting(redis_env="SOME_REDIS"), None)

    asyncio.run(scenario())


def test_without_its_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gateway.traffic.limits.redis_store")
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(SettingsError, match=r"pip install 'penstock\[redis\]'"):
        make_store(Counting(redis="redis://x"), None)


def test_limits_are_counted_from_the_first_limit_on_and_always_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Upstream() as upstream:
            await serve(MODELS.replace("http://127.0.0.1:9", upstream.url))

    async def serve(models: str) -> None:
        file = tmp_path / "penstock.yaml"
        file.write_text(models + KEY)
        context = Context(max_queue=1, max_body=1)
        serving = Serving(Settings(config=str(file)), context, tmp_path, worker_command, data=tmp_path)
        assert isinstance(context.limits.store, LocalStore)
        assert context.keys.check(b"Bearer sk").id == "a"
        running = asyncio.create_task(serving.run())
        try:
            await serving.ready()
            file.write_text(models + LIMITED)
            assert await serving.reload() == ["key a changed: limits"]
            store = context.limits.store
            assert isinstance(store, SharedStore)
            assert context.keys.check(b"Bearer sk").limited
            file.write_text(models + LIMITED.replace("1/min", "2/min"))
            assert await serving.reload() == ["key a changed: limits"]
            assert context.limits.store is store
            file.write_text(models + LIMITED + "limits: {redis: 'redis://127.0.0.1:9'}")
            with pytest.raises(ReloadError, match="only by a restart"):
                await serving.reload()
            assert context.limits.store is store
            await store.leave()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await serving.stop(0)

    asyncio.run(scenario())
