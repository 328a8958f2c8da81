"""Retries, hedges and streams that go on elsewhere, with variants: what is recorded is what the client got."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flywheel.record import Record
from gateway.record.recorder import Recorder
from tests.gateway.harness import run
from tests.gateway.lane.harness import until
from tests.gateway.lane.test_continuation import text_of
from tests.gateway.lane.upstream import Talk, Upstream, obliging
from tests.gateway.lane.vllm_upstream import WHOLE, Break, VllmUpstream
from tests.gateway.traffic.harness import Gateway, chat, configured
from tests.gateway.traffic.test_routes import words
from tests.gateway.traffic.test_watching import COMPARED, pairs_of, rollout_of

MODELS = """
models:
  chat:
    variants: {{stable: {{target: a}}, canary: {{target: a}}}}
    rollout: {{guard: [error_rate], steps: [50, 100], dwell: 60s}}
    shadow: [{{target: b, sample: 100%}}]
log: {{path: {folder}}}
targets:
  a: {{engine: openai, urls: ["{first}", "{second}"], model: m}}
  b: {{engine: openai, urls: ["{shadow}"], model: m}}
"""


class Outputs:
    """What of answers gets on record, before it is sealed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: list[Record] = []
        self.outputs: list[bytes] = []
        end: Any = Recorder.end

        def noting(recorder: Recorder, record: Record, asked: bytes | None, answered: bytes | None, *more: Any) -> None:
            self.records.append(record)
            self.outputs.append(answered or b"")
            end(recorder, record, asked, answered, *more)

        monkeypatch.setattr(Recorder, "end", noting)


async def first_at(gateway: Gateway, upstream: Upstream) -> None:
    """Have requests go to ``upstream``: the other one looks busy."""
    lane = gateway.context.lane_to("a")
    assert lane is not None
    for target in lane.targets:
        target.foreign = 0.0 if target.address.port == upstream.port else 100.0


@pytest.mark.parametrize("breaks", ["reset", "silence"])
def test_streams_that_go_on(breaks: Break, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        outputs = Outputs(monkeypatch)
        async with VllmUpstream(breaks) as bad, VllmUpstream() as good, Upstream(words(WHOLE)) as shadow:
            text = MODELS.format(first=bad.url, second=good.url, shadow=shadow.url, folder=tmp_path / "log")
            async with configured(tmp_path, text, upstream_idle_timeout=0.3) as gateway:
                lane = gateway.context.lane_to("a")
                assert lane is not None
                await until(lambda: all(target.continues for target in lane.targets))
                for number in range(1, 9):
                    await first_at(gateway, bad)
                    asked = chat(stream=True, max_tokens=12, stream_options={"include_usage": True})
                    answer = await gateway.post(asked)
                    assert text_of(answer) == WHOLE
                    assert outputs.outputs[-1] == answer.body
                    assert outputs.records[-1].output_tokens == 10
                    if number == 4:
                        bad.breaks = None
                await until(lambda: gateway.metric(COMPARED) == 8)
                assert not pairs_of(gateway.context)  # those that differ
                await until(lambda: rollout_of(gateway).controls > 0)
                assert "error_rate 0.0%" in rollout_of(gateway).guards[0].says

    run(scenario())


def test_whole_answers_that_are_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(talk: Talk) -> None:
        """An answer that breaks off in its middle, where nobody has heard of it yet."""
        talk.writer.write(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{half")
        await talk.writer.drain()
        await asyncio.sleep(0.02)
        talk.reset()

    async def scenario() -> None:
        outputs = Outputs(monkeypatch)
        async with Upstream(half) as bad, Upstream(obliging) as good, Upstream(obliging) as shadow:
            text = MODELS.format(first=bad.url, second=good.url, shadow=shadow.url, folder=tmp_path / "log")
            async with configured(tmp_path, text) as gateway:
                await first_at(gateway, bad)
                answer = await gateway.post(chat())
                assert answer.status == 200
                assert outputs.outputs == [answer.body] and outputs.records[0].attempts == 2
                await until(lambda: gateway.metric(COMPARED) == 1)
                assert not pairs_of(gateway.context)

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_hedges(stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = False

    async def sometimes(talk: Talk) -> None:
        if slow:
            await asyncio.sleep(2)
        await obliging(talk)

    async def scenario() -> None:
        nonlocal slow
        outputs = Outputs(monkeypatch)
        async with Upstream(sometimes) as bad, Upstream(obliging) as good, Upstream(obliging) as shadow:
            text = MODELS.format(first=bad.url, second=good.url, shadow=shadow.url, folder=tmp_path / "log")
            async with configured(tmp_path, text, hedge=1.0) as gateway:
                await first_at(gateway, bad)
                for number in range(40):
                    slow = number >= 38
                    answer = await asyncio.wait_for(gateway.post(chat(stream=stream)), 1.8)
                    assert answer.status == 200 and outputs.outputs[-1] == answer.body
                assert gateway.metric("penstock_hedges_won_total") >= 1
                await until(lambda: gateway.metric(COMPARED) >= 20)
                assert not pairs_of(gateway.context) and gateway.context.queued == 0

    run(scenario())
