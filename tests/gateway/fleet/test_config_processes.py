"""Native workers and upstreams behind one port, from a file that is read again under load: no request fails."""

import asyncio
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from penstock import main
from tests.gateway.fleet.processes import PATIENCE, Serve, start
from tests.gateway.harness import run
from tests.gateway.lane.upstream import Talk, Upstream, obliging

NATIVE = "{engine: native, device: cpu, dtype: float32, kv_memory: 32MiB%s}"
FILE = """
models:
  demo: {target: demo}
  far: {target: first}
targets:
  demo: %s
  first: {engine: openai, urls: ["%s"], model: m}
"""


def words(text: str = "What is 7 + 5?") -> Any:
    return [{"role": "user", "content": text}]


class Load:
    """Clients that ask one after the other, each for one model, half of them for streams."""

    def __init__(self, url: str, models: list[str]) -> None:
        self.faults: list[str] = []
        self.answered = dict.fromkeys(models, 0)
        self._client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._ask(model, bool(n))) for model in models for n in range(2)]

    async def _ask(self, model: str, stream: bool) -> None:
        while not self._stop.is_set():
            try:
                if stream:
                    events = await self._client.chat.completions.create(
                        model=model, messages=words(), stream=True, max_tokens=24
                    )
                    last = [event.choices[0].finish_reason async for event in events if event.choices][-1]
                    assert last in ("stop", "length")
                else:
                    await self._client.chat.completions.create(model=model, messages=words(), max_tokens=8)
                self.answered[model] += 1
            except Exception as error:
                self.faults.append(f"{model}: {error!r}")
            await asyncio.sleep(0.01)

    async def some_more(self) -> None:
        """Wait until every model has answered three more requests."""
        before = dict(self.answered)
        async with asyncio.timeout(30):
            while any(count < before[model] + 3 for model, count in self.answered.items()):
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)
        await self._client.close()


async def slow(talk: Talk) -> None:
    """Answer as a server should, a stream in half a second."""
    if not talk.request.json.get("stream"):
        await obliging(talk)
        return
    talk.begin_stream()
    for word in ("one", " two", " three"):
        talk.event(word)
        await asyncio.sleep(0.15)
    talk.end_stream()


async def drained(gateway: Serve, models: list[str]) -> None:
    """Have a gateway drained while each model streams: all streams come to their ends."""
    url = f"http://127.0.0.1:{gateway.port}/v1"
    begun: list[str] = []

    async def stream(client: openai.AsyncOpenAI, model: str) -> str | None:
        events = await client.chat.completions.create(
            model=model, messages=words(), stream=True, max_tokens=300, extra_body={"ignore_eos": True}
        )
        finish = None
        async for event in events:
            if not event.choices:
                continue
            if model not in begun:
                begun.append(model)
            finish = event.choices[0].finish_reason
        return finish

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        streams = [asyncio.create_task(stream(client, model)) for model in models]
        while len(begun) < len(models):
            await asyncio.sleep(0.005)
        assert not any(task.done() for task in streams)
        gateway.process.send_signal(signal.SIGTERM)
        assert set(await asyncio.gather(*streams)) <= {"stop", "length"}


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[str]:
    """The URL of a simulated worker."""
    process = start("bench", "worker", "--model", "m", "--speed", "10", state=tmp_path)
    assert process.stdout is not None
    found = re.search(r"http://[\d.:]+", process.stdout.readline())
    assert found is not None
    yield found[0]
    process.terminate()
    process.communicate()


def test_targets_of_both_kinds_come_and_go_under_load(tmp_path: Path, simulated: str) -> None:
    file = tmp_path / "penstock.yaml"
    before = FILE % (NATIVE % "", simulated)
    file.write_text(before)

    async def scenario(gateway: Serve, second: Upstream) -> None:
        await asyncio.to_thread(gateway.ready)
        url = f"http://127.0.0.1:{gateway.port}"
        async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE) as client:

            async def reload() -> list[str]:
                answer = await client.post("/admin/reload")
                assert answer.status_code == 200, answer.text
                changes: list[str] = answer.json()["changes"]
                return changes

            names = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
            assert names == ["demo", "far"]
            assert (await client.get("/health/ready")).status_code == 200
            load = Load(url, names)
            await load.some_more()

            # Another target for one name, and another name for a target.
            file.write_text(before.replace("far: {target: first}", "far: {target: second}\n  also: {target: demo}")
                            + f'  second: {{engine: openai, urls: ["{second.url}"], model: m}}\n')  # fmt: skip
            assert await reload() == ["target second added", "model far: leads to second now", "model also added"]
            await load.some_more()
            asked = await client.post("/v1/chat/completions", json={"model": "also", "messages": words()})
            assert asked.json()["model"] == "also"

            # The old one goes, its address is another one's, and the model's workers are replaced.
            after = FILE % (NATIVE % ", max_running: 8", second.url)
            file.write_text(after)
            assert await reload() == [
                "target demo changed: max_running", "target first changed: urls", "target second removed",
                "model far: leads to first now", "model also removed",
            ]  # fmt: skip
            await load.some_more()
            gone = await client.post("/v1/chat/completions", json={"model": "also", "messages": words()})
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
            assert "'demo', 'far'" in gone.json()["error"]["message"]

            # A file that is wrong changes nothing.
            file.write_text(after.replace("target: first", "target: frist"))
            refused = await client.post("/admin/reload")
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_configuration")
            assert f"{file}:4: models.far.target: there is no target 'frist'" in refused.json()["error"]["message"]
            await load.some_more()
            await load.end()
            assert load.faults == []
            while 'worker="demo-0"' in (page := (await client.get("/metrics")).text):
                await asyncio.sleep(0.1)
            assert 'penstock_worker_up{worker="demo-1"} 1.0' in page
            up = f'penstock_upstream_up{{upstream="first/127.0.0.1:{second.port}"}} 1.0'
            while up not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.1)
        await drained(gateway, names)

    async def whole() -> str:
        async with Upstream(slow) as second:
            gateway = Serve("--config", str(file), state=tmp_path)
            try:
                await scenario(gateway, second)
                return await asyncio.to_thread(gateway.end)
            finally:
                gateway.__exit__(None, None, None)

    said = run(whole(), timeout=PATIENCE)
    assert "the configuration stays as it was" in said and "Traceback" not in said
    assert "target=demo has gone" in said and "target=second has gone" in said and "target=first has gone" not in said


def test_several_processes_read_the_file_again(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    text = 'models: {far: {target: t}}\ntargets: {t: {engine: openai, urls: ["%s"], model: m}}\n'

    async def models(url: str) -> set[tuple[str, ...]]:
        found = set()
        for _ in range(12):  # connections of their own, so that all processes are met
            async with httpx2.AsyncClient(base_url=url) as client:
                found.add(tuple(model["id"] for model in (await client.get("/v1/models")).json()["data"]))
        return found

    async def scenario(gateway: Serve, upstream: Upstream) -> None:
        await asyncio.to_thread(gateway.ready)
        url = f"http://127.0.0.1:{gateway.port}"
        assert await models(url) == {("far",)}
        for name, by_signal in (("further", True), ("furthest", False)):
            file.write_text((text % upstream.url).replace("far:", f"{name}:"))
            if by_signal:
                gateway.process.send_signal(signal.SIGHUP)
            else:
                async with httpx2.AsyncClient(base_url=url) as client:
                    changes = (await client.post("/admin/reload")).json()["changes"]
                    assert changes == ["model further removed", "model furthest added"]
            async with asyncio.timeout(10):
                while await models(url) != {(name,)}:
                    await asyncio.sleep(0.05)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            await client.chat.completions.create(model="furthest", messages=words())

    async def whole() -> None:
        async with Upstream() as upstream:
            file.write_text(text % upstream.url)
            gateway = Serve("--config", str(file), "--gateway-processes", "2", state=tmp_path)
            try:
                await scenario(gateway, upstream)
                await asyncio.to_thread(gateway.end)
            finally:
                gateway.__exit__(None, None, None)

    run(whole(), timeout=PATIENCE)


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (
            "models: {c: {target: t}}\ntargets: {t: {engine: nativ}}",
            (),
            ":2: targets.t.engine: engine 'nativ' is unknown",
        ),
        ("models: {c: {target: t}}\ntargets: {t: {engine: native}}", ("--replicas", "2"), "--replicas can't be given"),
        ("models: {c: {target: t}}\ntargets: {t: {engine: native}}", ("--gateway-processes", "2"), "start them with "),
        (None, (), "this file can't be read: No such file"),
    ],
)
def test_it_does_not_start_with_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "penstock.yaml"
    if text is not None:
        file.write_text(text)
    assert main(["serve", "--port", "0", "--config", str(file), *words]) == 2
    assert said in capsys.readouterr().err
