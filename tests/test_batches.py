"""Batches as their users meet them: ``penstock serve`` with the demo model, the official client, and a power cut."""

import json
import time
from pathlib import Path

import openai
import psutil
import pytest
from openai.types import Batch

from tests.serving import Serving

COUNT = 60
ENDED = ("completed", "failed", "cancelled", "expired")


def question(number: int) -> dict[str, object]:
    a, b = number % 7, number % 5
    body = {
        "model": "penstock-demo",
        "messages": [{"role": "user", "content": f"What is {a} plus {b}?"}],
        "temperature": 0,
        "max_tokens": 24,
    }
    return {"custom_id": f"sum-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def done(batch: Batch) -> int:
    counts = batch.request_counts
    return 0 if counts is None else counts.completed + counts.failed


@pytest.mark.slow
def test_a_batch_survives_a_power_cut(tmp_path: Path) -> None:
    """Killed in the middle, gateway and worker, it goes on, and ends with the answers that it would have had."""
    data = ("--data-dir", str(tmp_path / "data"), "--batch-concurrency", "4")
    path = tmp_path / "questions.jsonl"
    lines = [*(question(number) for number in range(COUNT)), {**question(COUNT), "body": {"model": "gone"}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Serving(*data) as serving:
        client = serving.client()
        with open(path, "rb") as file:
            input = client.files.create(file=file, purpose="batch")
        batch = client.batches.create(
            input_file_id=input.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"n": "1"}
        )
        while done(batch := client.batches.retrieve(batch.id)) < COUNT // 4:
            time.sleep(0.02)
        assert batch.status == "in_progress"
        assert done(batch) < COUNT
        worker = serving.worker()
        serving.process.kill()
        serving.process.wait()
        worker.kill()
        psutil.wait_procs([worker], 10)
    with Serving(*data) as serving:
        client = serving.client()
        while (batch := client.batches.retrieve(batch.id)).status not in ENDED:
            time.sleep(0.05)
        assert batch.status == "completed"
        assert batch.metadata == {"n": "1"}
        output = [json.loads(text) for text in client.files.content(batch.output_file_id or "").text.splitlines()]
        assert sorted(one["custom_id"] for one in output) == sorted(f"sum-{number}" for number in range(COUNT))
        (failed,) = map(json.loads, client.files.content(batch.error_file_id or "").text.splitlines())
        assert failed["custom_id"] == f"sum-{COUNT}"
        assert failed["response"]["status_code"] in (400, 404)
        answers = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in output}
        for number in (0, COUNT - 1):
            online = client.chat.completions.create(
                model="penstock-demo",
                messages=[{"role": "user", "content": f"What is {number % 7} plus {number % 5}?"}],
                temperature=0,
                max_tokens=24,
            )
            assert answers[f"sum-{number}"] == online.choices[0].message.content
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)
        for id in (input.id, batch.output_file_id, batch.error_file_id):
            assert client.files.delete(id or "").deleted
        assert list(client.files.list()) == []
