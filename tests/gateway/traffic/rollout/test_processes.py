"""A rollout with several gateway processes: whichever a connection meets, all go by what the first one finds out."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from penstock import main
from tests.gateway.fleet.processes import PATIENCE, Serve
from tests.gateway.harness import run
from tests.gateway.lane.upstream import Talk, Upstream, obliging

FILE = """
models:
  chat:
    variants: {{stable: {{target: good}}, canary: {{target: bad}}}}
    rollout: {{guard: [error_rate], steps: [30, 100]}}
targets:
  good: {{engine: openai, urls: ["{good}"], model: m}}
  bad: {{engine: openai, urls: ["{bad}"], model: m}}
"""


BODY = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}


async def failing(talk: Talk) -> None:
    talk.reply({"error": {"message": "no"}}, 500)


async def variant(gateway: Serve) -> str:
    """Who answers a request that comes by a connection of its own, and so by any process; "" if nobody does."""
    answer = await gateway.ask(BODY, "/v1/chat/completions")
    return answer.headers.get("x-penstock-variant", "")


async def shown(gateway: Serve) -> Any:
    answers = [await gateway.ask({}, "/admin/rollouts/chat") for _ in range(4)]
    assert len({answer.json["canaries"] for answer in answers}) == 1, "they all ask the same one"
    return answers[0].json


def test_all_processes_follow_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with Upstream(obliging) as good, Upstream(failing) as bad:
            file = tmp_path / "penstock.yaml"
            file.write_text(FILE.format(good=good.url, bad=bad.url))
            starting = Serve("--config", str(file), "--gateway-processes", "3", state=tmp_path)
            await asyncio.to_thread(starting.ready)  # the upstreams have to answer meanwhile
            with starting as gateway:
                async with asyncio.timeout(PATIENCE / 2):
                    while (await shown(gateway))["status"] == "running":
                        await asyncio.gather(*(variant(gateway) for _ in range(50)))
                async with asyncio.timeout(PATIENCE / 4):  # the others read it a moment later
                    while {await variant(gateway) for _ in range(30)} != {"stable"}:
                        pass
                command = ["rollout", "restart", "chat", "--url", f"http://127.0.0.1:{gateway.port}"]
                assert await asyncio.to_thread(main, command) == 0
                async with asyncio.timeout(PATIENCE / 4):
                    while {await variant(gateway) for _ in range(30)} == {"stable"}:
                        pass
                gateway.process.send_signal(signal.SIGTERM)
                _, log = await asyncio.to_thread(gateway.process.communicate)
                assert gateway.process.returncode == 0 and "Traceback" not in log

    run(scenario(), PATIENCE)
    assert "running at 30 %" in capsys.readouterr().out
