"""A rollout with several gateway processes: whichever a connection meets counts, and goes by what all have seen."""

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock import main
from tests.gateway.fleet.processes import PATIENCE, Serve
from tests.gateway.harness import Answer, read_answer, request_bytes, run
from tests.gateway.lane.upstream import Talk, Upstream, obliging

FILE = """
models:
  chat:
    variants: {{stable: {{target: good}}, canary: {{target: bad}}}}
    rollout: {{guard: [{guard}], steps: [30, 100], dwell: 1h}}
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
    seen = [answer.json["canaries"] for answer in answers]
    assert seen == sorted(seen), "they all ask the same one"
    return answers[-1].json


def test_all_processes_follow_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with Upstream(obliging) as good, Upstream(failing) as bad:
            file = tmp_path / "penstock.yaml"
            file.write_text(FILE.format(guard="error_rate", good=good.url, bad=bad.url))
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


def test_requests_to_all_processes_count_and_feedback_on_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Upstream(obliging) as good, Upstream(obliging) as other:
            file = tmp_path / "penstock.yaml"
            file.write_text(FILE.format(guard="feedback", good=good.url, bad=other.url))
            starting = Serve("--config", str(file), "--gateway-processes", "2", state=tmp_path)
            await asyncio.to_thread(starting.ready)
            with starting as gateway:

                async def rated(count: int) -> list[bool]:
                    """Ask, and give feedback as soon as the answer is there: whether it counts."""
                    counted = []
                    for _ in range(count):
                        answer = await gateway.ask(BODY, "/v1/chat/completions")
                        said = {"request_id": answer.headers["x-request-id"], "score": 1}
                        counted.append((await feedback(gateway, said)).json.get("counted", False))
                    return counted

                async def asked(count: int, least: float) -> None:
                    """Send ``count`` requests, a share ``least`` of which is compared with others."""
                    before = await compared(gateway)
                    await asyncio.gather(*(variant(gateway) for _ in range(count)))
                    async with asyncio.timeout(PATIENCE / 8):
                        while await compared(gateway) - before < least * count:
                            await asyncio.sleep(0.05)

                assert all(await rated(6))
                await asked(100, 0.8)

                # The first one dies: all others answer, and tell its successor of what comes then.
                first = leader(gateway)
                first.kill()
                async with asyncio.timeout(PATIENCE / 4):
                    while (await gateway.ask({}, "/admin/rollouts/chat")).status != 200 or first.is_running():
                        with contextlib.suppress(ConnectionError, EOFError):  # some come to the one that dies
                            assert await variant(gateway) in ("stable", "canary")
                await variant(gateway)
                await asyncio.sleep(0.5)
                await asked(100, 0.8)
                assert all(await rated(6))
                gateway.process.send_signal(signal.SIGTERM)
                _, log = await asyncio.to_thread(gateway.process.communicate)
                assert gateway.process.returncode == 0 and "Traceback" not in log

    run(scenario(), PATIENCE)


async def feedback(gateway: Serve, said: dict[str, Any]) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request_bytes("POST", "/v1/feedback", said, {"connection": "close"}))
    try:
        return await read_answer(reader)
    finally:
        writer.close()


def leader(gateway: Serve) -> psutil.Process:
    children = psutil.Process(gateway.process.pid).children()
    (found,) = [one for one in children if "gateway.processes" in one.cmdline() and one.cmdline()[-3] == "0"]
    return found


async def compared(gateway: Serve) -> int:
    found = await shown(gateway)
    return int(found["controls"] + found["canaries"])
