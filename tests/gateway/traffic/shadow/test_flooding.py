"""A shadow that never stops, behind a real gateway: it is left, and its target is left alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.traffic.shadow.service import ANSWER_LIMIT
from tests.gateway.harness import run
from tests.gateway.lane.harness import until
from tests.gateway.lane.upstream import Talk, Upstream
from tests.gateway.traffic.harness import chat, configured

CONFIG = """
models: {{chat: {{target: a, shadow: [{{target: b, sample: 100%}}]}}}}
targets:
  a: {{engine: openai, urls: ["{a}"]}}
  b: {{engine: openai, urls: ["{b}"]}}
"""


def flooding(status: int, sent: list[int], *, stream: bool) -> Callable[[Talk], Any]:
    """A script that answers without an end, and counts what it could get rid of."""

    async def script(talk: Talk) -> None:
        kind = "text/event-stream" if stream else "application/json"
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
        talk.writer.write(head.encode())
        while True:
            talk.chunk(b"x" * 0x10000)
            sent.append(0x10000)
            await talk.writer.drain()

    return script


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [200, 500])
def test_a_flood_is_left_in_the_middle(status: int, stream: bool, tmp_path: Path) -> None:
    async def scenario() -> None:
        sent: list[int] = []
        async with (
            Upstream() as primary,
            Upstream(flooding(status, sent, stream=stream)) as shadow,
            configured(tmp_path, CONFIG.format(a=primary.url, b=shadow.url)) as gateway,
        ):
            answer = await gateway.post(chat())
            assert answer.json["choices"][0]["message"]["content"] == "one two three"
            labels = 'model="chat",outcome="failed",target="b"'
            await until(lambda: gateway.metric(f"penstock_shadow_requests_total{{{labels}}}") == 1)
            await until(lambda: shadow.connections <= 1)  # that of the probes may stay
            assert ANSWER_LIMIT < sum(sent) < 16 * ANSWER_LIMIT  # with what sockets hold
            shadows = gateway.context.shadows
            assert shadows is not None and shadows._held == 0

    run(scenario())
