"""Workers that die or hang in the middle of answers: real processes, the real engine, the demo model."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.gateway.fleet.processes import PATIENCE, WORKER, Serve
from tests.gateway.harness import run

LENGTH = 200
PROMPT = "Once upon a time there was a gateway with two workers. "
GREEDY = {"prompt": PROMPT, "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
SEEDED = {
    "prompt": [PROMPT, "Der andere. "],
    "max_tokens": LENGTH,
    "temperature": 0.9,
    "seed": 7,
    "n": 2,
    "frequency_penalty": 0.4,
    "logprobs": 1,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Three workers behind one gateway, of which at most two are harmed at a time."""
    with Serve(*WORKER, "--replicas", "3", "--worker-timeout", "1.5", state=tmp_path_factory.mktemp("state")) as served:
        yield served
        log = served.end()
        assert "Traceback" not in log


async def up(served: Serve, count: int) -> None:
    while await served.metric("penstock_worker_up") < count:
        await asyncio.sleep(0.05)


def test_a_client_that_leaves_frees_the_worker_that_has_its_request(served: Serve) -> None:
    async def scenario() -> None:
        await up(served, 3)
        streams = [await served.stream({**GREEDY, "prompt": f"{number}", "max_tokens": 400}) for number in range(4)]
        for stream in streams:
            await stream.read(2)
            stream.writer.close()
        while await served.metric("penstock_worker_running") or await served.metric("penstock_requests_in_flight") > 1:
            await asyncio.sleep(0.02)

    run(scenario(), PATIENCE)


async def busy(served: Serve) -> int:
    """The process id of the worker that runs most now."""
    page = (await served.ask({}, "/metrics")).body.decode()
    running = dict(re.findall(r'penstock_worker_running{worker="(w\d)"} (\S+)', page))
    most = max(running, key=lambda name: float(running[name]))
    assert float(running[most]) > 0
    return served.workers()[most].pid


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_answers_survive_their_worker(served: Serve, harm: signal.Signals) -> None:
    async def scenario() -> None:
        await up(served, 2)
        bodies = [{**asked, "stream_options": {"include_usage": True}} for asked in (GREEDY, SEEDED)]
        undisturbed = await asyncio.gather(*[(await served.stream(body)).read() for body in bodies])
        before = await served.metric("penstock_requests_moved_total")
        streams = [await served.stream(body) for body in bodies]
        await asyncio.gather(*[stream.read(20) for stream in streams])
        os.kill(await busy(served), harm)
        await asyncio.gather(*[stream.read() for stream in streams])
        for one, other in zip(streams, undisturbed, strict=True):
            assert one.error == ""
            assert one.texts == other.texts
            assert one.reasons == other.reasons
            assert one.logprobs == other.logprobs
            for field in ("prompt_tokens", "completion_tokens"):
                assert one.usage[field] == other.usage[field]
        assert await served.metric("penstock_requests_moved_total") > before

    run(scenario(), PATIENCE)
