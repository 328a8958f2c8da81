"""Several workers of a model, in one event loop with the gateway: who gets what, and what becomes of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.events import packed
from engine.link import Blocks, Failed, Load, Sampling, Submit
from gateway.fleet.crew import Crew
from gateway.fleet.fleet import Fleet
from gateway.fleet.native import OutputStream, RequestFailed, WorkerLink, WorkerLost, connect
from gateway.fleet.remote import RemoteWorker
from gateway.fleet.roster import Roster
from gateway.fleet.served_model import ServedModel
from gateway.fleet.worker import Worker
from gateway.telemetry.metrics import Metrics
from scheduler.blocks import chain_hashes, root_hash, short_hash
from scheduler.placement import PlacementConfig
from tests.gateway.fake_worker import FakeWorker, prompt_ids
from tests.gateway.harness import run

SAMPLING = Sampling(max_tokens=32)
PROMPT = list(range(20))
LARGE = {"max_model_len": 8192, "kv_tokens": 65536}


class Several:
    """Fake workers, and the crew that keeps them connected."""

    def __init__(self, fakes: Sequence[FakeWorker], workers: Sequence[Worker], models: dict[str, ServedModel]) -> None:
        self.fakes, self.workers, self.models = fakes, workers, models

    @property
    def fleet(self) -> Fleet:
        return self.models["fake"].fleet

    def submit(self, prompt: Sequence[int] = PROMPT, **more: Any) -> OutputStream:
        stream = self.fleet.open()
        stream.submit(prompt, SAMPLING, **more)
        return stream

    async def holder(self, stream: OutputStream) -> FakeWorker:
        """The worker that has the only request of a stream."""
        (id,) = stream.open
        while True:
            for fake in self.fakes:
                if id in fake.running:
                    return fake
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def several(
    folder: Path, where: Path, *hellos: dict[str, Any], lost_after: float = 5.0, **fleet: Any
) -> AsyncIterator[Several]:
    metrics, models = Metrics(), dict[str, ServedModel]()
    policy = PlacementConfig(policy=fleet.pop("policy", "held"))
    adapters = fleet.pop("adapters", None)
    roster = Roster(models, lambda name: Fleet(name, metrics, policy, **fleet), ServedModel.load, adapters)
    fakes = [FakeWorker(folder, auto=False, **hello) for hello in hellos]
    workers = [Worker(f"w{index}", metrics, watcher=roster) for index in range(len(fakes))]
    addresses = [f"unix:{where}/{index}.sock" for index in range(len(fakes))]
    for fake, address in zip(fakes, addresses, strict=True):
        await fake.start(address.removeprefix("unix:"))
    keepers = [RemoteWorker(worker, address) for worker, address in zip(workers, addresses, strict=True)]
    crew = Crew(keepers, lost_after)
    task = asyncio.create_task(crew.run())
    for worker in workers:
        await worker.greeted.wait()
    await roster.loaded()
    try:
        yield Several(fakes, workers, models)
    finally:
        await crew.stop(0.0)
        await task
        for model in models.values():
            model.close()
        for fake in fakes:
            await fake.stop()
        for worker in workers:
            await worker.lost.wait()


async def read(stream: OutputStream, count: int | None = None) -> list[int]:
    """So many tokens, or all."""
    tokens: list[int] = []
    while count is None or len(tokens) < count:
        for output in await stream.next():
            tokens += output.tokens
            if output.finish:
                return tokens
    return tokens


async def interrupted(found: Several, stream: OutputStream, steps: int) -> FakeWorker:
    """Let the worker that has the request draw some tokens; who that is."""
    first = await found.holder(stream)
    for _ in range(steps):
        first.step()
    return first


@pytest.mark.parametrize("harm", ["drop", "garbage"])
def test_another_worker_goes_on_with_an_answer(model_folder: Path, tmp_path: Path, harm: str) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}) as found:
            stream = found.submit(tenant="t", priority=2, age=3.0)
            first = await interrupted(found, stream, 5)
            tokens = await read(stream, 5)
            if harm == "drop":
                first.drop()
            else:
                first.send_bytes(b"\x04\x00\x00\x00junk")
                first.running.clear()
            (second,) = [fake for fake in found.fakes if fake is not first]
            assert await found.holder(stream) is second
            second.auto = True
            second.kick()
            assert tokens + await read(stream) == PROMPT
            (asked,) = second.submitted
            assert (prompt_ids(asked), asked.answered) == (PROMPT, 5)
            assert (asked.tenant, asked.priority, asked.age) == ("t", 2, 0.0)
            assert asked.sampling.max_tokens == SAMPLING.max_tokens

    run(scenario())


def test_what_has_no_answer_yet_is_asked_again_as_it_was(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}) as found:
            stream = found.fleet.open()
            stream.submit(PROMPT, Sampling(max_tokens=4, prompt_logprobs=1), age=1.0)
            first = await found.holder(stream)
            first.drop()
            second = found.fakes[1 - found.fakes.index(first)]
            await second.until(lambda: second.submitted)
            (asked,) = second.submitted
            assert asked.answered == 0 and asked.sampling.prompt_logprobs == 1 and asked.age >= 1.0
            stream.close()
            await second.until(lambda: second.aborted == [asked.id])

    run(scenario())


def test_scores_of_the_prompt_are_not_asked_for_twice(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}) as found:
            stream = found.fleet.open()
            stream.submit(PROMPT, Sampling(max_tokens=4, prompt_logprobs=1))
            first = await interrupted(found, stream, 1)
            await read(stream, 1)
            first.drop()
            second = await found.holder(stream)
            assert second.submitted[0].sampling.prompt_logprobs == -1
            stream.close()

    run(scenario())


def test_what_takes_every_worker_with_it_is_given_up(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}) as found:
            stream = found.submit()
            for _ in range(3):
                fake = await found.holder(stream)
                fake.drop()
            with pytest.raises(WorkerLost, match="3 workers were lost with this request"):
                await stream.next()

    run(scenario())


def test_requests_wait_for_the_only_worker_to_come_back(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}) as found:
            begun = found.submit()
            (fake,) = found.fakes
            await interrupted(found, begun, 2)
            fake.drop()
            await found.workers[0].lost.wait()
            new, background = found.submit([7]), found.submit([8], background=True)
            fake.auto = True
            assert await read(begun) == PROMPT
            assert (await read(new), await read(background)) == ([7], [8])
            assert found.fleet.held == 0

    run(scenario())


def test_they_do_not_wait_for_ever(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, patience=0.03) as found:
            (fake,) = found.fakes
            fake.loaded.clear()
            fake.drop()
            await found.workers[0].lost.wait()
            for more in (False, True):
                with pytest.raises(WorkerLost, match="the worker is restarting"):
                    await found.submit(PROMPT, background=more).next()
            fake.loaded.set()

    run(scenario())


def test_one_that_waits_can_be_aborted_and_interrupted(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}) as found:
            (fake,) = found.fakes
            fake.loaded.clear()
            fake.drop()
            await found.workers[0].lost.wait()
            gone, told = found.submit(), found.submit()
            gone.close()
            assert found.fleet.held == 1
            found.fleet.interrupt_all(lambda: KeyError("enough"))
            with pytest.raises(KeyError):
                await told.next()
            assert found.fleet.held == 0
            fake.loaded.set()

    run(scenario())


def test_a_draining_worker_gets_nothing_new(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}) as found:
            for told in (True, False):
                one, other = found.fakes if told else reversed(found.fakes)
                one.drained = True
                if told:
                    one.send(
                        Load(waiting=0, running=0, waiting_tokens=0, kv_used=0, kv_total=9, backlog=0, draining=True)
                    )
                    while found.workers[0].ready:
                        await asyncio.sleep(0.001)
                streams = [found.submit() for _ in range(3)]
                for stream in streams:
                    if told:
                        assert await found.holder(stream) is other
                    stream.close()
                one.drained = False
                one.drop()
                await asyncio.sleep(0.15)

    run(scenario())


def test_a_refusal_is_passed_on(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}) as found:
            for fake in found.fakes:
                fake.refuse = ("invalid_request", "not like this")
            with pytest.raises(RequestFailed, match="not like this"):
                await found.submit().next()

    run(scenario())


def test_work_is_spread(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}, {}, policy="least-load") as found:
            streams = [found.submit([number] * 16) for number in range(9)]
            background = [found.submit([100 + number], background=True) for number in range(3)]
            for stream in streams + background:
                await found.holder(stream)
            assert [len(fake.running) for fake in found.fakes] == [4, 4, 4]
            for stream in streams + background:
                stream.close()

    run(scenario())


def test_a_prompt_goes_to_where_its_beginning_is_cached(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, LARGE, LARGE) as found:
            for fake in found.fakes:
                fake.auto = True
                fake.script = lambda submit: [1]
            homes = []
            for number in [0, 1, 2, 3] * 3:
                before = len(found.fakes[0].submitted)
                await read(found.submit([number] * 4000))
                homes.append(len(found.fakes[0].submitted) - before)
            assert homes[:4] == homes[4:8] == homes[8:]

    run(scenario())


def test_what_workers_say_of_their_caches_is_believed(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        hello = {**LARGE, "capabilities": ("blocks",)}
        async with several(model_folder, tmp_path, hello, hello) as found:
            prompt = [7] * 4000
            hashes = packed(short_hash(digest) for digest in chain_hashes(prompt, 16, root_hash("", "")))
            for fake in found.fakes:
                fake.auto = True
                fake.script = lambda submit: [1]
                await fake.until(lambda fake=fake: fake.followed == 1)  # type: ignore[misc]
            for told, other in (found.fakes, found.fakes[::-1]):
                other.send(Blocks(removed=hashes))
                told.send(Blocks(cleared=True, stored=hashes))
                await asyncio.sleep(0.02)
                before = len(told.submitted)
                for _ in range(3):
                    await read(found.submit(prompt))
                assert len(told.submitted) == before + 3

    run(scenario())


def test_one_worker_alone_is_not_followed(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {"capabilities": ("blocks",)}) as found:
            found.submit().close()
            stream = found.submit()
            await found.holder(stream)
            stream.close()
            assert found.fakes[0].followed == 0

    run(scenario())


def test_models_of_different_names(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {"model": "other", "vocab_size": 300}) as found:
            assert set(found.models) == {"fake", "other"}
            stream = found.models["other"].fleet.open()
            stream.submit([1], SAMPLING)
            assert await found.holder(stream) is found.fakes[1]
            stream.close()

    run(scenario())


def test_one_with_another_vocabulary_gets_nothing(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {"vocab_size": 300}) as found:
            assert len(found.fleet.workers) == 1

    run(scenario())
    assert "its vocabulary has" in caplog.text


def test_the_shortest_context_of_all_counts(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {"max_model_len": 48}) as found:
            assert found.models["fake"].max_model_len == 48

    run(scenario())


def test_one_that_falls_silent_is_suspected_and_then_lost(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        hello = {"heartbeat": 0.02}
        async with several(model_folder, tmp_path, hello, {}, lost_after=0.6) as found:
            (silent, _), (fake, other) = found.workers, found.fakes
            stream = found.submit()
            while await found.holder(stream) is not fake:
                stream.close()
                stream = found.submit()
            while silent.ready:
                await asyncio.sleep(0.01)
            await silent.lost.wait()
            assert "was silent for" in silent.reason
            await other.until(lambda: stream.open <= other.running.keys())
            stream.close()

    run(scenario())


def test_what_can_not_be_in_time_is_refused(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        for count in (1, 2):
            async with several(model_folder, tmp_path, *({},) * count, longest_wait=0.5) as found:
                load = Load(waiting=9, running=0, waiting_tokens=9000, kv_used=0, kv_total=9000, backlog=60.0)
                for fake, worker in zip(found.fakes, found.workers, strict=True):
                    fake.send(load)
                    while worker.backlog != 60.0:
                        await asyncio.sleep(0.001)
                with pytest.raises(RequestFailed) as refused:
                    await found.submit().next()
                failed: Failed = refused.value.failed
                assert failed.code == "overloaded" and failed.retry_after >= 1.0

    run(scenario())


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_may_say_hello_before_its_connection_is_known_here(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    async def slowly(*args: Any) -> WorkerLink:
        link = await connect(*args)
        await asyncio.sleep(0.02)
        return link

    monkeypatch.setattr("gateway.fleet.worker.connect", slowly)

    async def scenario() -> None:
        async with several(model_folder, tmp_path, *({},) * count) as found:
            for fake in found.fakes:
                fake.auto = True
            for background in (False, True):
                assert await read(found.submit([7], background=background)) == [7]

    run(scenario())


def dying(fake: FakeWorker) -> None:
    """Let a worker die of each request."""

    def script(submit: Submit) -> list[int]:
        fake.drop()
        return [1]

    fake.script = script


def test_one_that_dies_of_every_request_fails_none_and_gets_few(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}, policy="round-robin") as found:
            bad, good = found.fakes
            dying(bad)
            good.auto = True
            for number in range(12):
                while not all(worker.ready for worker in found.workers):
                    await asyncio.sleep(0.005)
                assert await read(found.submit([number])) == [number]
            assert len(good.submitted) == 12
            assert 3 <= len(bad.submitted) <= 5, "three in a row, then none but for trials"

    run(scenario())


def test_failures_of_its_own_count_too(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}, policy="round-robin") as found:
            bad, good = found.fakes
            bad.refuse = ("internal", "something broke")
            good.auto = True
            failures = 0
            for number in range(12):
                try:
                    await read(found.submit([number]))
                except RequestFailed:
                    failures += 1
            assert (failures, len(bad.submitted)) == (3, 3)

    run(scenario())


def test_what_avoids_a_worker_goes_back_to_it_if_there_is_no_other(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}) as found:
            stream = found.submit()
            first = await found.holder(stream)
            (other,) = [fake for fake in found.fakes if fake is not first]
            busy = Load(waiting=9, running=0, waiting_tokens=90_000, kv_used=0, kv_total=9, backlog=60.0)
            other.send(busy)
            while max(worker.backlog for worker in found.workers) < 60.0:
                await asyncio.sleep(0.001)
            first.drop()
            while found.fleet.held == 0:
                await asyncio.sleep(0.001)
            while not all(worker.ready for worker in found.workers):
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.02)
            assert found.fleet.held == 1, "it has been with the one, and waits for the other"
            other.loaded.clear()
            other.drop()
            assert await found.holder(stream) is first
            stream.close()
            other.loaded.set()

    run(scenario())


def test_the_placer_knows_how_long_answers_have_become(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.fleet.fleet._COUNT_EVERY", 0.0)

    async def scenario() -> None:
        async with several(model_folder, tmp_path, LARGE, LARGE) as found:
            stream = found.submit()
            first = await interrupted(found, stream, 7)
            await read(stream, 7)
            first.send(Load(waiting=0, running=1, waiting_tokens=0, kv_used=16, kv_total=9, backlog=0.0))
            sent = [one for worker in found.fleet._placer.workers.values() for one in worker.sent.values()]
            while sent[0].produced < 7:
                await asyncio.sleep(0.001)
            stream.close()

    run(scenario())


def test_one_that_comes_back_counts_as_slow_at_first(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(model_folder, tmp_path, {}, {}) as found:
            placer = found.fleet._placer
            assert [worker.weight for worker in placer.workers.values()] == [1.0, 1.0]
            found.fakes[0].drop()
            await found.workers[0].lost.wait()
            while not found.workers[0].ready:
                await asyncio.sleep(0.005)
            begun = placer.workers["w0"].weight
            assert begun < 0.5 and placer.workers["w1"].weight == 1.0
            while placer.workers["w0"].weight == begun:
                await asyncio.sleep(0.02)
            assert begun < placer.workers["w0"].weight < 1.0

    run(scenario())
