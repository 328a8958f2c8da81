"""Shadows with several gateway processes: requests to all are copied, and the first one tells of them all."""

import asyncio
import signal
from pathlib import Path

from tests.gateway.fleet.processes import PATIENCE, Serve
from tests.gateway.harness import run
from tests.gateway.lane.upstream import Talk, Upstream, obliging

FILE = """
models: {{chat: {{target: a, shadow: [{{target: b, sample: 100%}}]}}}}
targets:
  a: {{engine: openai, urls: ["{a}"], model: m}}
  b: {{engine: openai, urls: ["{b}"], model: m}}
"""
BODY = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
REQUESTS = 20
PAIRS = "/admin/shadows/pairs?model=chat&target=b"


async def four(talk: Talk) -> None:
    message = {"role": "assistant", "content": "one two three four"}
    talk.reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


async def compared(gateway: Serve) -> int:
    """So many pairs, as any of the processes says."""
    answer = await gateway.ask({}, "/admin/shadows")
    (shadow,) = answer.json["shadows"]
    return sum(int(endpoint["compared"]) for endpoint in shadow["endpoints"])


def test_one_process_tells_of_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Upstream(obliging) as a, Upstream(four) as b:
            file = tmp_path / "penstock.yaml"
            file.write_text(FILE.format(a=a.url, b=b.url))
            starting = Serve("--config", str(file), "--gateway-processes", "2", state=tmp_path)
            await asyncio.to_thread(starting.ready)  # the upstreams have to answer meanwhile
            with starting as gateway:
                for _ in range(REQUESTS):
                    await gateway.ask(BODY, "/v1/chat/completions")
                async with asyncio.timeout(PATIENCE / 4):
                    while await compared(gateway) < REQUESTS:
                        await asyncio.sleep(0.05)
                for _ in range(6):
                    assert await compared(gateway) == REQUESTS
                    pairs = (await gateway.ask({}, PAIRS)).json["pairs"]
                    assert {pair["shadow"]["text"] for pair in pairs} == {"one two three four"}
                gateway.process.send_signal(signal.SIGTERM)
                _, log = await asyncio.to_thread(gateway.process.communicate)
                assert gateway.process.returncode == 0 and "Traceback" not in log

    run(scenario(), PATIENCE)
