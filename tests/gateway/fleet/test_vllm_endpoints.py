"""What a real ``vllm serve`` has beside chats passes through a gateway that has a model of its own as well."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest

from tests.gateway.fleet.processes import Serve
from tests.gateway.fleet.test_vllm_upstreams import LONGEST_START, MODEL, PYTHON, Vllm, named_vllm
from tests.gateway.harness import run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python that has vLLM")]

FILE = """
models: {far: {target: vllm}, near: {target: demo}}
targets:
  demo: {engine: native, device: cpu, dtype: float32, kv_memory: 32MiB, threads: 1}
  vllm: {engine: openai, urls: ["%s"], model: %s}
"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Serve]:
    server = Vllm(named_vllm(tmp_path))

    async def started() -> None:
        while not server.ready:
            await asyncio.sleep(0.5)

    try:
        run(started(), LONGEST_START)
        file = tmp_path / "penstock.yaml"
        file.write_text(FILE % (server.url, MODEL))
        with Serve("--config", str(file), state=tmp_path) as serve:
            yield serve
    finally:
        if server.process.poll() is None:
            server.send_signal(signal.SIGKILL)
        server.process.wait()


def test_responses_and_messages_of_both_kinds_of_targets(gateway: Serve) -> None:
    url = f"http://127.0.0.1:{gateway.port}"

    async def scenario() -> None:
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as other,
            httpx2.AsyncClient(base_url=url) as plain,
        ):
            for model in ("far", "near"):
                response = await client.responses.create(model=model, input="What is 7 + 5?", max_output_tokens=16)
                assert response.status in ("completed", "incomplete") and response.usage is not None
                events = await client.responses.create(
                    model=model, input="What is 7 + 5?", max_output_tokens=16, stream=True
                )
                assert [event.type async for event in events][-1] in ("response.completed", "response.incomplete")
                said = await other.messages.create(
                    model=model, max_tokens=16, messages=[{"role": "user", "content": "What is 7 + 5?"}]
                )
                assert said.usage.output_tokens > 0
                async with other.messages.stream(
                    model=model, max_tokens=16, messages=[{"role": "user", "content": "What is 7 + 5?"}]
                ) as stream:
                    assert (await stream.get_final_message()).stop_reason in ("end_turn", "max_tokens")
                missing = await plain.post("/v1/embeddings", json={"model": model, "input": "x"})
                assert missing.status_code == (404 if model == "far" else 200)
            page = (await plain.get("/metrics")).text
            for endpoint in ("/v1/responses", "/v1/messages"):
                for model in ("far", "near"):
                    labels = f'endpoint="{endpoint}",model="{model}",outcome="ok",status="200"'
                    assert f"penstock_requests_total{{{labels}}} 2.0" in page
            lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
            counted = {name: float(value) for name, _, value in lines}
            for tokens in ("prompt", "output"):
                assert counted[f'penstock_{tokens}_tokens_total{{model="far"}}'] >= 8

    run(scenario(), 120)
