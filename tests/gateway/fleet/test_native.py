"""The gateway's side of the link."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.link import (
    PROTOCOL,
    Blocks,
    Failed,
    Hello,
    Load,
    Output,
    Progress,
    Sampling,
    Slo,
    Step,
    Submit,
    frame,
)
from gateway.fleet.native import OutputStream, RequestFailed, WorkerLink, WorkerLost, connect, int32_bytes
from tests.gateway.fake_worker import FakeWorker, prompt_ids
from tests.gateway.harness import run

SAMPLING = Sampling(max_tokens=32)


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []
        self.loads: list[Load] = []
        self.blocks: list[Blocks] = []
        self.greeted = asyncio.Event()
        self.lost = asyncio.Event()
        self.reason = ""

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)

    def on_hello(self, link: WorkerLink, hello: Hello) -> None:
        self.greeted.set()

    def on_load(self, load: Load) -> None:
        self.loads.append(load)

    def on_blocks(self, blocks: Blocks) -> None:
        self.blocks.append(blocks)

    def on_lost(self, link: WorkerLink, reason: str) -> None:
        self.reason = reason
        self.lost.set()


class Pair:
    """A link and the worker at its other end."""

    def __init__(self, folder: Path, socket: Path, **fake: object) -> None:
        self.worker = FakeWorker(folder, auto=False, **fake)  # type: ignore[arg-type]
        self.owner = Owner()
        self._path = str(socket)

    async def __aenter__(self) -> "Pair":
        await self.worker.start(self._path)
        self.link = await connect(f"unix:{self._path}", self.owner)
        await self.owner.greeted.wait()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.link.close()
        await self.worker.stop()
        await self.owner.lost.wait()

    async def submit(self, prompt: Sequence[int] = (1, 2, 3)) -> OutputStream:
        before = len(self.worker.submitted)
        stream = self.link.open()
        stream.submit(prompt, SAMPLING)
        await self.worker.until(lambda: len(self.worker.submitted) > before)
        return stream


def one(stream: OutputStream) -> int:
    """The only request that is open on ``stream``."""
    (id,) = stream.open
    return id


@pytest.fixture
def pair(model_folder: Path, tmp_path: Path) -> Pair:
    return Pair(model_folder, tmp_path / "w.sock")


async def drain(stream: OutputStream) -> list[int]:
    tokens: list[int] = []
    while True:
        for output in await stream.next():
            tokens += output.tokens
            if output.finish:
                return tokens


def test_start_up_is_told(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            assert pair.owner.progress == [Progress("reading weights", 1, 2)]
            assert pair.link.hello == pair.worker.hello
            load = Load(waiting=1, running=2, waiting_tokens=3, kv_used=4, kv_total=5, backlog=0.5)
            pair.worker.send(load)
            while pair.owner.loads[-1:] != [load]:
                await asyncio.sleep(0.001)

    run(scenario())


def test_a_request_arrives_as_it_was_submitted(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            prompt = [0, 255, 70_000, 2**31 - 1]
            sampling = Sampling(max_tokens=5, temperature=0.5, seed=7, stop_token_ids=(3,))
            slo = Slo(ttft=1.0, tpot=0.1)
            pair.link.open().submit(prompt, sampling, tenant="t", priority=3, age=0.25, slo=slo, salt="s")
            await pair.worker.until(lambda: pair.worker.submitted)
            (found,) = pair.worker.submitted
            assert prompt_ids(found) == prompt
            assert found == Submit(
                id=found.id,
                tokens=int32_bytes(prompt),
                sampling=sampling,
                tenant="t",
                priority=3,
                age=0.25,
                slo=slo,
                salt="s",
            )

    run(scenario())


def test_one_frame_serves_every_stream(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            streams = [await pair.submit([number, number + 1]) for number in range(20)]
            answers = [asyncio.create_task(drain(stream)) for stream in streams]
            pair.worker.step()
            pair.worker.step()
            assert await asyncio.gather(*answers) == [[number, number + 1] for number in range(20)]
            assert pair.link.requests == 0
            assert not any(stream.open for stream in streams)

    run(scenario())


def test_outputs_wait_for_a_slow_reader_in_order(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            stream = await pair.submit([5, 6, 7])
            for _ in range(3):
                pair.worker.step()
            while stream.open:
                await asyncio.sleep(0.001)
            outputs = await stream.next()
            assert [output.tokens for output in outputs] == [[5], [6], [7]]
            assert outputs[-1].finish == "stop"

    run(scenario())


def test_closing_aborts_once_and_only_what_runs(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            finished, running = await pair.submit([1]), await pair.submit([1, 2])
            pair.worker.step()
            await drain(finished)
            id = one(running)
            finished.close()
            running.close()
            running.close()
            await pair.worker.until(lambda: pair.worker.aborted)
            await pair.submit()
            assert pair.worker.aborted == [id]

    run(scenario())


def test_what_still_comes_for_an_aborted_request_is_dropped(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            aborted, other = await pair.submit([1, 2]), await pair.submit([3])
            id = one(aborted)
            aborted.close()
            late = Output(id, [9], [0.0], [0.0])
            pair.worker.send(Step([late, Output(one(other), [3], [0.0], [0.0], "stop")]))
            pair.worker.send(Failed(id, "internal", "too late"))
            assert await drain(other) == [3]

    run(scenario())


def test_an_interruption_reaches_who_waits_and_aborts(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            stream = await pair.submit()
            id = one(stream)
            waiting = asyncio.create_task(stream.next())
            await asyncio.sleep(0)
            stream.interrupt(KeyError("enough"))
            with pytest.raises(KeyError, match="enough"):
                await waiting
            with pytest.raises(KeyError, match="enough"):
                await stream.next()
            await pair.worker.until(lambda: pair.worker.aborted == [id])

    run(scenario())


def test_an_interruption_comes_before_outputs_that_nobody_read(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            stream = await pair.submit([1])
            pair.worker.step()
            while stream.open:
                await asyncio.sleep(0.001)
            stream.interrupt(KeyError("enough"))
            with pytest.raises(KeyError):
                await stream.next()
            assert pair.worker.aborted == []

    run(scenario())


def test_a_failure_ends_its_request_alone(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            failing, other = await pair.submit(), await pair.submit([4])
            pair.worker.running.pop(one(failing))
            pair.worker.send(Failed(one(failing), "internal", "a fault"))
            with pytest.raises(RequestFailed, match="a fault") as fault:
                await failing.next()
            assert fault.value.failed.code == "internal"
            pair.worker.step()
            assert await drain(other) == [4]

    run(scenario())


def test_one_stream_carries_several_requests(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            stream = await pair.submit([1, 2, 3])
            first = one(stream)
            second, third = stream.submit([4, 5, 6], SAMPLING), stream.submit([7, 8], SAMPLING)
            assert stream.open == {first, second, third}
            await pair.worker.until(lambda: len(pair.worker.submitted) == 3)
            stream.abort(second)
            stream.abort(second)
            await pair.worker.until(lambda: pair.worker.aborted == [second])
            for _ in range(3):
                pair.worker.step()
            found: dict[int, list[int]] = {}
            while stream.open:
                for output in await stream.next():
                    found.setdefault(output.id, []).extend(output.tokens)
            assert found == {first: [1, 2, 3], third: [7, 8]}

    run(scenario())


def test_a_request_that_fails_ends_its_stream(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            stream = await pair.submit([1])
            failing, other = one(stream), stream.submit([2, 3], SAMPLING)
            pair.worker.send(Failed(failing, "internal", "a fault"))
            with pytest.raises(RequestFailed, match="a fault"):
                await stream.next()
            assert stream.open == {other}
            stream.close()
            await pair.worker.until(lambda: pair.worker.aborted == [other])

    run(scenario())


def test_a_lost_link_fails_all_after_what_has_come(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            one, two = await pair.submit([1, 2]), await pair.submit([1, 2])
            pair.worker.step()
            pair.worker.drop()
            await pair.owner.lost.wait()
            for stream in (one, two):
                assert [output.tokens for output in await stream.next()] == [[1]]
                with pytest.raises(WorkerLost, match="connection broke"):
                    await stream.next()
            assert not pair.link.connected
            with pytest.raises(WorkerLost):
                pair.link.open()

    run(scenario())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x04\x00\x00\x00junk", "not a message to a gateway"),
        (b"\xff\xff\xff\xff", "more than the"),
        (bytes(frame(Progress("x")))[:4] + b"\xc1" * 100, "not a message to a gateway"),
    ],
)
def test_garbage_ends_the_link(pair: Pair, data: bytes, reason: str) -> None:
    async def scenario() -> None:
        async with pair:
            stream = await pair.submit()
            pair.worker.send_bytes(data)
            with pytest.raises(WorkerLost, match=reason):
                await stream.next()
            assert reason in pair.owner.reason

    run(scenario())


def test_another_protocol_is_refused(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        owner = Owner()
        worker = FakeWorker(model_folder, protocol=PROTOCOL + 1)
        await worker.start(str(tmp_path / "w.sock"))
        link = await connect(f"unix:{tmp_path}/w.sock", owner)
        await owner.lost.wait()
        assert f"it speaks protocol {PROTOCOL + 1}, this gateway {PROTOCOL}" in owner.reason
        assert link.hello is None
        await worker.stop()

    run(scenario())


def test_frames_may_come_in_any_pieces(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair:
            stream = await pair.submit([1])
            data = frame(Step([Output(one(stream), [1, 2], [0.0, 0.0], [0.0, 0.0], "stop")]))
            for byte in data:
                pair.worker.send_bytes(bytes([byte]))
                await asyncio.sleep(0)
            assert await drain(stream) == [1, 2]

    run(scenario())


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        run(connect(f"unix:{tmp_path}/w.sock", Owner()))
    with pytest.raises(ValueError, match="is no address"):
        run(connect("w.sock", Owner()))


def test_token_ids_are_little_endian() -> None:
    assert int32_bytes([1, 258]) == b"\x01\0\0\0\x02\x01\0\0"
    assert int32_bytes([]) == b""
