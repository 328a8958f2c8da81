"""``penstock serve --upstream`` as a process: ready, keys, a drain, and what it refuses to start with."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from gateway.keys import client_keys
from gateway.plan import make_plan
from gateway.settings import Settings, SettingsError
from tests.gateway.harness import run
from tests.gateway.lane.harness import chat
from tests.gateway.lane.upstream import Talk, Upstream
from tests.serving import Serving


def test_it_is_ready_when_an_upstream_is_and_drains_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_OF_CLIENTS", "sk-one, sk-two")
    monkeypatch.setenv("KEY_OF_UPSTREAM", "sk-up")

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def paused(talk: Talk) -> None:
            talk.begin_stream()
            talk.event("one")
            await go_on.wait()
            talk.end_stream()

        async with Upstream(paused) as upstream:
            words = ("--upstream", upstream.url, "--api-key-env", "KEYS_OF_CLIENTS")
            serving = await asyncio.to_thread(Serving, *words, "--upstream-api-key-env", "KEY_OF_UPSTREAM", timeout=20)
            assert "passing through to 1 upstream: m" in serving.ready_line
            try:
                async with (
                    httpx2.AsyncClient(base_url=serving.url, headers={"authorization": "Bearer sk-two"}) as client,
                    client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer,
                ):
                    lines = answer.aiter_lines()
                    assert '"one"' in await anext(lines)
                    serving.process.send_signal(signal.SIGTERM)
                    await asyncio.sleep(0.2)
                    with pytest.raises(httpx2.ConnectError):
                        await httpx2.AsyncClient(base_url=serving.url).get("/health/live")
                    go_on.set()
                    assert "data: [DONE]" in [line async for line in lines]
                assert await asyncio.to_thread(serving.process.wait, 10) == 0
                assert upstream.requests[0].headers["authorization"] == "bearer sk-up"
            finally:
                await asyncio.to_thread(serving.__exit__, None, None, None)

    run(scenario())


def test_several_processes_pass_through_on_one_port() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream:
            words = ("--upstream", upstream.url, "--gateway-processes", "2")
            serving = await asyncio.to_thread(Serving, *words, timeout=30)
            try:
                for _ in range(8):  # connections of their own, so that both are met
                    async with httpx2.AsyncClient(base_url=serving.url) as client:
                        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
                serving.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(serving.process.wait, 10) == 0
            finally:
                await asyncio.to_thread(serving.__exit__, None, None, None)

    run(scenario())


def test_a_gateway_without_upstreams_answers_that_there_are_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    closed = f"http://127.0.0.1:{port}"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        ours = sock.getsockname()[1]
    command = [sys.executable, "-m", "penstock", "serve", "--upstream", closed, "--port", str(ours)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:

        async def scenario() -> None:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{ours}") as client:
                while True:
                    try:
                        live = await client.get("/health/live")
                        break
                    except httpx2.ConnectError:
                        await asyncio.sleep(0.05)
                assert live.status_code == 200
                assert (await client.get("/health/ready")).status_code == 503
                refused = await client.post("/v1/chat/completions", json=chat())
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"

        run(scenario())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"upstream": ("ftp://x",)}, "--upstream 'ftp://x' is no URL of an upstream"),
        ({"upstream": ("dns:x",)}, "--upstream 'dns:x': write dns:NAME:PORT"),
        ({"upstream": ("http://x",), "upstream_idle_timeout": 0.0}, "--upstream-idle-timeout must be"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**fields)


def test_keys_that_are_missing_are_named() -> None:
    os.environ.pop("NO_SUCH_KEY", None)
    settings = Settings(upstream=("http://x",), api_key_env="NO_SUCH_KEY", upstream_api_key_env="NO_SUCH_KEY")
    for wanted in (client_keys, make_plan):
        with pytest.raises(SettingsError, match="variable NO_SUCH_KEY has no key in it"):
            wanted(settings)
