"""A batch from its creation to its end, over restarts, with an application that needs no worker."""

import asyncio
import errno
import json
import logging
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.batches import results, shared, work
from gateway.batches import run as run_module
from gateway.batches.files import write_all
from gateway.batches.service import Batches
from gateway.wire.batches import BatchError, CreateBatch, RequestCounts
from tests.gateway.batches.builders import (
    ENDPOINT,
    StubApp,
    content,
    jsonl,
    line,
    numbered,
    opened,
    submit,
    until,
    upload,
)
from tests.gateway.harness import run


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_LINGER", 0.0)
    monkeypatch.setattr(work, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(run_module, "_DISK_PAUSE", 0.01)


def test_from_the_input_to_the_output(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, bytes]:
        if body["say"] == "bad":
            return 400, b'{"error": {"message": "no"}}'
        return 200, b'{"said":\n"' + body["say"].encode() + b'"}'

    async def scenario() -> None:
        app = StubApp(reply)
        async with opened(tmp_path / "d", app) as batches:
            text = jsonl([line("a"), b"", line("bad"), line("é ☃"), b" \t"])
            made = await submit(batches, text[:-1], metadata={"for": "me"})
            assert (made.status, made.object, made.metadata) == ("validating", "batch", {"for": "me"})
            assert made.expires_at == made.created_at + 86400
            batch = await until(batches, made.id, "completed")
            assert batch.request_counts == RequestCounts(total=3, completed=2, failed=1)
            assert batch.errors is None
            times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
            assert times == sorted(time for time in times if time is not None)
            output = await content(batches, batch.output_file_id)
            assert sorted(one["custom_id"] for one in output) == ["a", "é ☃"]
            for one in output:
                assert list(one) == ["id", "custom_id", "response", "error"]
                assert one["error"] is None
                assert one["id"].startswith("batch_req_")
                answer = {"said": one["custom_id"]}
                assert one["response"] == {"status_code": 200, "request_id": "req-stub", "body": answer}
            (failed,) = await content(batches, batch.error_file_id)
            assert (failed["custom_id"], failed["error"]) == ("bad", None)
            assert failed["response"]["status_code"] == 400
            assert failed["response"]["body"] == {"error": {"message": "no"}}
            store = await batches.files()
            file = store.get(batch.output_file_id or "")
            assert file is not None
            assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
            assert sorted(os.listdir(tmp_path / "d" / "batches" / batch.id)) == ["batch.json"]
        (scope, *_) = app.scopes
        assert scope["state"] == {"background": True, "only": "", "key": ""}
        assert (scope["method"], scope["path"]) == ("POST", ENDPOINT)

    run(scenario())


def test_no_errors_no_error_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, StubApp()) as batches:
            batch = await until(batches, (await submit(batches, numbered(3))).id, "completed")
            assert batch.error_file_id is None
            assert len(await content(batches, batch.output_file_id)) == 3

    run(scenario())


def test_what_is_wrong_with_an_input_is_said_by_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, StubApp()) as batches:
            bad = jsonl([line("a"), b"{", line("b", method="GET"), line("a")])
            batch = await until(batches, (await submit(batches, bad)).id, "failed")
            assert batch.errors is not None
            found = [(error.line, error.code, error.param) for error in batch.errors.data]
            assert found == [
                (2, "invalid_json_line", None),
                (3, "invalid_method", "method"),
                (4, "duplicate_custom_id", "custom_id"),
            ]
            assert batch.failed_at is not None
            assert (batch.output_file_id, batch.error_file_id, batch.in_progress_at) == (None, None, None)
            empty = await until(batches, (await submit(batches, b"\n")).id, "failed")
            assert empty.errors is not None
            assert [error.code for error in empty.errors.data] == ["empty_file"]

    run(scenario())


def test_requests_are_under_way_up_to_the_limit_and_batches_take_turns(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        app.open.clear()
        async with opened(tmp_path, app, concurrency=4) as batches:
            large = await submit(batches, numbered(200))
            while app.under_way < 4:
                await asyncio.sleep(0.001)
            small = await submit(batches, jsonl([line(id) for id in "abc"]))
            await until(batches, small.id, "in_progress")
            await asyncio.sleep(0.02)
            app.open.set()
            await until(batches, small.id, "completed")
            await until(batches, large.id, "completed")
        assert app.most_under_way == 4
        assert max(list(app.asked).index(id) for id in "abc") < 30  # the counter is in the order of first askings

    run(scenario())


def test_overload_is_waited_out_and_other_errors_are_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        def reply(body: dict[str, Any]) -> tuple[int, bytes]:
            say = body["say"]
            if app.asked[say] < 3 and say != "0":
                return (429, b"{}") if say == "1" else (503, b"{}")
            return (500, b"{}") if say == "0" else (200, b"{}")

        app = StubApp(reply)
        async with opened(tmp_path, app) as batches:
            batch = await until(batches, (await submit(batches, numbered(4))).id, "completed")
            assert batch.request_counts == RequestCounts(total=4, completed=3, failed=1)
            assert app.asked == {"0": 1, "1": 3, "2": 3, "3": 3}

    run(scenario())


def test_batches_beyond_those_that_may_be_active_wait_and_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_ACTIVE", 1)

    async def scenario() -> None:
        app = StubApp()
        app.open.clear()
        async with opened(tmp_path, app) as batches:
            one = await submit(batches, jsonl([line("a")]))
            while not app.under_way:  # files are looked through in threads: which batch is the first one isn't said
                await asyncio.sleep(0.001)
            two, three = [await submit(batches, jsonl([line(id)])) for id in "bc"]
            for made in (one, two, three):
                await until(batches, made.id, "in_progress")
            await batches.cancel(two.id)
            assert (await until(batches, two.id, "cancelled")).request_counts.failed == 1
            assert app.asked.total() == 1
            app.open.set()
            for made in (one, three):
                await until(batches, made.id, "completed")
        assert app.asked == {"a": 1, "c": 1}

    run(scenario())


def test_a_streamed_answer_is_refused_and_nothing_is_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        async with opened(tmp_path, app) as batches:
            text = jsonl([line("s", body={"stream": True, "say": "s"}), line("n", body={"stream": False, "say": "n"})])
            batch = await until(batches, (await submit(batches, text)).id, "completed")
            (failed,) = await content(batches, batch.error_file_id)
            assert failed["response"]["status_code"] == 400
            assert failed["response"]["body"]["error"]["code"] == "unsupported_parameter"
            assert failed["response"]["body"]["error"]["param"] == "stream"
            assert app.asked == {"n": 1}

    run(scenario())


def test_a_fault_of_ours_is_a_line_of_the_error_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        def reply(body: dict[str, Any]) -> tuple[int, bytes]:
            raise KeyError("secret")

        async with opened(tmp_path, StubApp(reply)) as batches:
            batch = await until(batches, (await submit(batches, numbered(1))).id, "completed")
            (failed,) = await content(batches, batch.error_file_id)
            assert failed["response"]["body"]["error"]["code"] == "internal_error"
            assert "secret" not in json.dumps(failed)

    run(scenario())
    assert "line=1" in caplog.text


def test_cancelling_keeps_what_there_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        def reply(body: dict[str, Any]) -> tuple[int, bytes]:
            if app.asked.total() >= 10:
                app.open.clear()
            return 200, b"{}"

        app = StubApp(reply)
        async with opened(tmp_path, app, concurrency=2) as batches:
            made = await submit(batches, numbered(50))
            batch = await until(batches, made.id, "in_progress")
            while batch.request_counts.completed < 5:
                await asyncio.sleep(0.001)
                batch = await until(batches, made.id, "in_progress")
            cancelled = await batches.cancel(made.id)
            assert cancelled is not None
            assert (cancelled.status, cancelled.cancelling_at is None) == ("cancelling", False)
            batch = await until(batches, made.id, "cancelled")
            assert app.under_way == 0
            output, failed = await content(batches, batch.output_file_id), await content(batches, batch.error_file_id)
            assert len(output) == batch.request_counts.completed >= 5
            assert {one["error"]["code"] for one in failed} == {"batch_cancelled"}
            assert all(one["response"] is None for one in failed)
            assert sorted(int(one["custom_id"]) for one in output + failed) == list(range(50))
            assert await batches.cancel(made.id) == batch
            done = await until(batches, (await submit(batches, b"")).id, "failed")
            with pytest.raises(Exception, match="Cannot cancel a batch with status 'failed'") as refused:
                await batches.cancel(done.id)
            assert getattr(refused.value, "status", 0) == 409
            assert await batches.cancel("batch_none") is None

    run(scenario())


def test_cancelling_while_it_is_looked_at(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        async with opened(tmp_path, app) as batches:
            made = await submit(batches, numbered(20_000))
            await batches.cancel(made.id)
            batch = await until(batches, made.id, "cancelled")
            assert (batch.output_file_id, batch.error_file_id, batch.in_progress_at) == (None, None, None)
            assert not app.asked

    run(scenario())


def test_what_is_not_done_in_time_expires(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp(lambda body: (200 if int(body["say"]) < 3 else 503, b"{}"))
        start = time.time()
        async with opened(tmp_path, app, window=3600.0) as batches:
            made = await submit(batches, numbered(10))
            while (await until(batches, made.id, "in_progress")).request_counts.completed < 3:
                await asyncio.sleep(0.005)
        async with opened(tmp_path, app, clock=lambda: start + 3700) as batches:
            batch = await until(batches, made.id, "expired")
            assert batch.request_counts == RequestCounts(total=10, completed=3, failed=7)
            assert batch.expired_at == int(start + 3700)
            failed = await content(batches, batch.error_file_id)
            assert {one["error"]["code"] for one in failed} == {"batch_expired"}
            assert sorted(one["custom_id"] for one in failed) == ["3", "4", "5", "6", "7", "8", "9"]
            assert len(await content(batches, batch.output_file_id)) == 3

    run(scenario())


def test_the_window_closes_while_requests_are_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        app.open.clear()
        now = time.time()
        async with opened(tmp_path, app, window=1.0, clock=lambda: int(now)) as batches:
            batch = await until(batches, (await submit(batches, numbered(10))).id, "expired")
            assert batch.request_counts == RequestCounts(total=10, completed=0, failed=10)
            assert app.under_way == 0

    run(scenario())


@pytest.mark.parametrize("seed", range(6))
def test_stopped_anywhere_it_goes_on(tmp_path: Path, seed: int) -> None:
    """However often it is stopped, gently or not, every line has one result in the end."""
    moment = random.Random(seed)

    async def scenario() -> None:
        app = StubApp(lambda body: (200 if int(body["say"]) % 3 else 400, b"{}"))
        id = ""
        stops = 0
        while True:
            async with opened(tmp_path, app, concurrency=8) as batches:
                id = id or (await submit(batches, numbered(400))).id
                await asyncio.sleep(moment.uniform(0.0, 0.002 * (stops + 1)))  # no machine is done with it at the first
                batch = await batches.get(id)
                assert batch is not None
                if batch.status == "completed":
                    break
                stops += 1
                if moment.random() < 0.5:
                    await batches.drain()
                    assert app.under_way == 0
        async with opened(tmp_path, app) as batches:
            output, failed = await content(batches, batch.output_file_id), await content(batches, batch.error_file_id)
            assert sorted(int(one["custom_id"]) for one in output + failed) == list(range(400))
            assert all(int(one["custom_id"]) % 3 for one in output)
            assert batch.request_counts == RequestCounts(total=400, completed=len(output), failed=len(failed))
            assert await batches.get(id) == batch
        assert stops

    run(scenario())


def test_a_drain_finishes_what_is_under_way_and_begins_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        app.open.clear()
        async with opened(tmp_path, app, concurrency=3) as batches:
            made = await submit(batches, numbered(10))
            while app.under_way < 3:
                await asyncio.sleep(0.001)
            draining = asyncio.create_task(batches.drain())
            await asyncio.sleep(0.01)
            assert not draining.done()
            app.open.set()
            await draining
            batch = await batches.get(made.id)
            assert batch is not None
            assert (batch.status, batch.request_counts.completed) == ("in_progress", 3)
        assert app.asked.total() == 3
        async with opened(tmp_path, app) as batches:
            await until(batches, made.id, "completed")
        assert app.asked.total() == 10

    run(scenario())


def test_requests_that_wait_to_be_asked_again_hold_no_drain_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_FIRST_PAUSE", 1000.0)

    async def scenario() -> None:
        app = StubApp(lambda body: (503, b"{}"))
        async with opened(tmp_path, app) as batches:
            await submit(batches, numbered(3))
            while app.asked.total() < 3:
                await asyncio.sleep(0.001)
            await batches.drain()

    run(scenario())


def test_a_disk_that_refuses_pauses_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = True

    def write(fd: int, data: bytes) -> None:
        if full:
            os.write(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(fd, data)

    monkeypatch.setattr(results, "write_all", write)

    async def scenario() -> None:
        nonlocal full
        async with opened(tmp_path, StubApp()) as batches:
            made = await submit(batches, numbered(20))
            batch = await until(batches, made.id, "in_progress")
            while batch.errors is None:
                await asyncio.sleep(0.002)
                batch = await until(batches, made.id, "in_progress")
            message = "The batch is paused until the disk can be used again: No space left on device."
            assert batch.errors.data == [BatchError(code="storage_error", message=message)]
            assert batch.request_counts.completed == 0
            full = False
            batch = await until(batches, made.id, "completed")
            assert batch.errors is None
            output = await content(batches, batch.output_file_id)
            assert sorted(int(one["custom_id"]) for one in output) == list(range(20))

    with caplog.at_level(logging.ERROR):
        run(scenario())
    assert caplog.text.count("is paused until") == 1


def test_a_full_disk_holds_no_exit_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_DISK_PAUSE", 1000.0)

    def write(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results, "write_all", write)

    async def scenario() -> None:
        async with opened(tmp_path, StubApp()) as batches:
            made = await submit(batches, numbered(20))
            while (await until(batches, made.id, "in_progress")).errors is None:
                await asyncio.sleep(0.002)
            await batches.drain()

    run(scenario())


def test_an_input_that_is_gone_fails_the_batch(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        app.open.clear()
        async with opened(tmp_path, app, concurrency=1) as batches:
            made = await submit(batches, numbered(5))
            await until(batches, made.id, "in_progress")
        (tmp_path / "batches" / made.id / "input.jsonl").unlink()
        async with opened(tmp_path, app) as batches:
            batch = await until(batches, made.id, "failed")
            assert batch.errors is not None
            (error,) = batch.errors.data
            assert error.code == "storage_error"
            assert "No such file" in error.message

    run(scenario())


def test_the_file_may_be_deleted_while_the_batch_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        app.open.clear()
        async with opened(tmp_path, app, concurrency=1) as batches:
            made = await submit(batches, numbered(5))
            store = await batches.files()
            assert store.delete(made.input_file_id)
        app.open.set()
        async with opened(tmp_path, app) as batches:
            await until(batches, made.id, "completed")

    run(scenario())


def test_inputs_that_are_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, StubApp()) as batches:
            file = await upload(batches, b"x", "user_data")
            for id, message in (("file-none", "no such file"), (file.id, "purpose is 'user_data', not 'batch'")):
                with pytest.raises(Exception, match=message):
                    await batches.create(CreateBatch(input_file_id=id, endpoint=ENDPOINT, completion_window="24h"))

    run(scenario())


def test_batches_that_were_made_before_the_start_wait_for_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = StubApp()
        batches = Batches(app, tmp_path)
        made = await submit(batches, numbered(3))
        await asyncio.sleep(0.02)
        assert not app.asked
        await batches.start()
        await until(batches, made.id, "completed")
        await batches.close()

    run(scenario())
