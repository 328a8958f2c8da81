"""Batches and the end of processes: a real server with a fake worker, killed, stopped, and started again."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.gateway.batches.builders import ENDPOINT, jsonl, line
from tests.gateway.harness import chat
from tests.gateway.test_server import Served

SLOW = ("--delay", "0.02")


@pytest.fixture
def started() -> Iterator[list[Served]]:
    """Whatever a test puts here is ended after it."""
    found: list[Served] = []
    yield found
    for served in found:
        if served.process.poll() is None:
            served.process.kill()
            served.process.communicate()


def start(started: list[Served], folder: Path, data: Path, *words: str, **fields: Any) -> openai.OpenAI:
    served = Served(folder, *words, data_dir=str(data), **fields)
    started.append(served)
    served.ready()
    return openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0)


def kill(served: Served) -> None:
    served.signal(signal.SIGKILL)
    served.end()


def made(client: openai.OpenAI, count: int) -> Batch:
    """A batch of ``count`` chats, of which every tenth is for a model that there isn't."""
    lines = [line(f"id-{n}", body={**chat(f"{n}"), "model": "fake" if n % 10 else "gone"}) for n in range(count)]
    file = client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")


def until_done(client: openai.OpenAI, id: str, least: int) -> Batch:
    """The batch once ``least`` of its requests have ended."""
    while True:
        batch = client.batches.retrieve(id)
        counts = batch.request_counts
        if counts is not None and counts.completed + counts.failed >= least:
            return batch
        time.sleep(0.02)


def ended(client: openai.OpenAI, id: str) -> Batch:
    while (batch := client.batches.retrieve(id)).status != "completed":
        assert batch.status in ("validating", "in_progress", "finalizing")
        time.sleep(0.02)
    return batch


def check_results(client: openai.OpenAI, batch: Batch, count: int) -> None:
    """Every line has its own result, in the right file."""
    found: dict[str, list[int]] = {}
    for name, id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
        results = [json.loads(text) for text in client.files.content(id or "").text.splitlines()]
        found[name] = [int(one["custom_id"].removeprefix("id-")) for one in results]
        for number, one in zip(found[name], results, strict=True):
            if name == "output":
                assert f"u:{number}\n" in one["response"]["body"]["choices"][0]["message"]["content"]
            else:
                assert one["response"]["body"]["error"]["code"] == "model_not_found"
    assert sorted(found["output"]) == [n for n in range(count) if n % 10]
    assert sorted(found["error"]) == list(range(0, count, 10))
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {
        "total": count, "completed": len(found["output"]), "failed": len(found["error"]),
    }  # fmt: skip


@pytest.mark.slow
def test_killed_again_and_again(model_folder: Path, tmp_path: Path, started: list[Served]) -> None:
    count, concurrency = 400, 16
    client = start(started, model_folder, tmp_path / "d", *SLOW, batch_concurrency=concurrency)
    id = made(client, count).id
    kept = client.files.create(file=b"kept", purpose="user_data")
    seen = 0
    for share in (0.05, 0.3, 0.6):
        counts = until_done(client, id, int(count * share)).request_counts
        assert counts is not None
        assert counts.completed + counts.failed >= seen
        seen = counts.completed + counts.failed
        assert seen < count
        kill(started[-1])
        client = start(started, model_folder, tmp_path / "d", *SLOW, batch_concurrency=concurrency)
    check_results(client, ended(client, id), count)
    assert client.files.content(kept.id).content == b"kept"


def test_a_drain_is_not_held_up_and_nothing_is_lost(model_folder: Path, tmp_path: Path, started: list[Served]) -> None:
    client = start(started, model_folder, tmp_path / "d", *SLOW)
    id = made(client, 300).id
    until_done(client, id, 40)
    started[-1].signal(signal.SIGTERM)
    status, _, err = started[-1].end()
    assert (status, "drain timeout" in err, "Traceback" in err) == (0, False, False)
    client = start(started, model_folder, tmp_path / "d")
    check_results(client, ended(client, id), 300)


def test_the_drain_timeout_ends_what_is_under_way(model_folder: Path, tmp_path: Path, started: list[Served]) -> None:
    client = start(started, model_folder, tmp_path / "d", "--delay", "5", drain_timeout=0.2)
    id = made(client, 30).id
    until_done(client, id, 3)
    started[-1].signal(signal.SIGTERM)
    status, _, err = started[-1].end()
    assert (status, "drain timeout" in err, "Traceback" in err) == (0, True, False)
    client = start(started, model_folder, tmp_path / "d")
    check_results(client, ended(client, id), 30)


def test_a_worker_that_dies_costs_a_batch_nothing(model_folder: Path, tmp_path: Path, started: list[Served]) -> None:
    client = start(started, model_folder, tmp_path / "d", *SLOW, batch_concurrency=16)
    id = made(client, 200).id
    until_done(client, id, 40)
    started[-1].worker().kill()
    check_results(client, ended(client, id), 200)


def test_a_second_server_serves_without_files(model_folder: Path, tmp_path: Path, started: list[Served]) -> None:
    client = start(started, model_folder, tmp_path / "d")
    id = made(client, 10).id
    other = start(started, model_folder, tmp_path / "d")
    with pytest.raises(openai.InternalServerError, match="is in use by another process"):
        other.batches.retrieve(id)
    assert [model.id for model in other.models.list()] == ["fake"]
    ended(client, id)
    kill(started[0])
    check_results(other, other.batches.retrieve(id), 10)
