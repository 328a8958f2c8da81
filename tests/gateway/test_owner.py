"""Files, batches and responses with several gateway processes: whichever process a connection meets, all is there."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.owner import ToOwner
from tests.gateway.fake_worker import write_model_folder
from tests.gateway.harness import Answer, read_answer, request_bytes, run
from tests.gateway.test_server import Served

BOUNDARY = "xyz"
LINES = b"".join(
    json.dumps(
        {
            "custom_id": str(number), "method": "POST", "url": "/v1/completions",
            "body": {"model": "fake", "prompt": "abc", "max_tokens": 3},
        }
    ).encode() + b"\n"
    for number in range(5)
)  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_model_folder(tmp_path_factory.mktemp("served") / "model")
    served = Served(folder, "--delay", "0.01", "--max-model-len", "512", gateway_processes=3)
    try:
        served.ready()
        yield served
        served.signal(signal.SIGTERM)
        status, _, err = served.end()
        assert status == 0 and "Traceback" not in err
    finally:
        if served.process.poll() is None:
            served.process.kill()
            served.process.communicate()


def owner(served: Served) -> psutil.Process:
    """The first gateway process."""
    children = psutil.Process(served.process.pid).children()
    (found,) = [one for one in children if "gateway.processes" in one.cmdline() and one.cmdline()[-3] == "0"]
    return found


def upload(data: bytes) -> tuple[bytes, dict[str, str]]:
    parts = [
        b'content-disposition: form-data; name="purpose"\r\n\r\nbatch',
        b'content-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' + data,
    ]
    body = b"".join(b"--xyz\r\n" + part + b"\r\n" for part in parts) + b"--xyz--\r\n"
    return body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


async def send(served: Served, method: str, path: str, body: Any = b"", headers: Any = None) -> Answer:
    """On a connection of its own, so that any process may get it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request_bytes(method, path, body, {"connection": "close", **(headers or {})}))
    try:
        return await read_answer(reader)
    finally:
        writer.close()


def test_what_one_was_given_all_have(served: Served) -> None:
    async def scenario() -> None:
        body, headers = upload(LINES * 2000)
        files = [(await send(served, "POST", "/v1/files", body, headers)).json["id"] for _ in range(6)]
        for id in files:
            for _ in range(2):
                content = await send(served, "GET", f"/v1/files/{id}/content")
                assert (content.status, content.body) == (200, LINES * 2000)
        assert {one["id"] for one in (await send(served, "GET", "/v1/files?limit=100")).json["data"]} >= set(files)
        for _ in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(request_bytes("HEAD", f"/v1/files/{files[0]}", b"", {"connection": "close"}))
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
        assert (await send(served, "GET", "/v1/files/none")).json["error"]["code"] is not None

        body, headers = upload(LINES)
        file = (await send(served, "POST", "/v1/files", body, headers)).json["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = (await send(served, "POST", "/v1/batches", asked)).json
        while batch["status"] != "completed":
            await asyncio.sleep(0.02)
            batch = (await send(served, "GET", f"/v1/batches/{batch['id']}")).json
        assert batch["request_counts"]["completed"] == 5

    run(scenario())


def test_a_conversation_goes_on_wherever_its_next_turn_arrives(served: Served) -> None:
    async def scenario() -> None:
        previous = None
        for turn in range(8):
            asked = {"model": "fake", "input": "a", "previous_response_id": previous, "max_output_tokens": 3}
            answer = await send(served, "POST", "/v1/responses", {**asked, "stream": turn % 2 == 1})
            assert answer.status == 200, answer.body
            if turn % 2:
                assert b"event: response.incomplete" in answer.body, "three tokens are few"
                previous = json.loads(answer.body.rpartition(b"data: ")[2])["response"]["id"]
            else:
                previous = answer.json["id"]
            shown = await send(served, "GET", f"/v1/responses/{previous}")
            assert (shown.status, shown.json["id"]) == (200, previous)

    run(scenario())


def test_an_answer_that_comes_before_the_request_is_complete_comes_whole(served: Served) -> None:
    async def scenario() -> None:
        request = request_bytes("PUT", "/v1/files", {"a": 1}, {"connection": "close"})
        head, _, body = request.partition(b"\r\n\r\n")
        for _ in range(200):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            try:
                writer.write(head + b"\r\n\r\n")
                await asyncio.sleep(0)
                writer.write(body)
                answer = await read_answer(reader)
                assert (answer.status, answer.json["error"]["code"]) == (405, "method_not_allowed")
            finally:
                writer.close()

    run(scenario())


def test_an_owner_that_dies_is_missed_for_a_moment(served: Served) -> None:
    async def scenario() -> None:
        body = {"model": "fake", "input": "a" * 30, "stream": True, "max_output_tokens": 30}
        streams = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(12)]
        for reader, writer in streams:
            writer.write(request_bytes("POST", "/v1/responses", body, {"connection": "close"}))
            await reader.readuntil(b"response.output_text.delta")
        before = owner(served)
        before.kill()
        ended = await asyncio.gather(*(reader.read() for reader, _ in streams), return_exceptions=True)
        told = [one for one in ended if isinstance(one, bytes) and b"The server was lost before" in one]
        assert told, "those that came by another process hear of it"
        for _, writer in streams:
            writer.close()
        while (answer := await send(served, "GET", "/v1/files")).status == 503:
            assert answer.headers["retry-after"] == "1"
            await asyncio.sleep(0.05)
        assert answer.status == 200
        assert owner(served).pid != before.pid

    run(scenario())


def test_a_client_that_leaves_leaves_the_owner_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        left, begun = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"POST /v1/responses?x=1 HTTP/1.1\r\n") and b"expect" not in head
            begun.set()
            await reader.read()
            left.set()
            writer.close()

        async def nothing(*_: Any) -> None:
            raise AssertionError("this is the owner's")

        async def receive() -> dict[str, Any]:
            if not begun.is_set():
                await begun.wait()
                return {"type": "http.request", "body": b"{}", "more_body": False}
            return {"type": "http.disconnect"}

        server = await asyncio.start_unix_server(serve, tmp_path / "owner.sock")
        scope = {
            "type": "http", "method": "POST", "path": "/v1/responses", "query_string": b"x=1",
            "headers": [(b"content-length", b"2"), (b"expect", b"100-continue")],
        }  # fmt: skip
        await ToOwner(nothing, tmp_path / "owner.sock")(scope, receive, nothing)
        await left.wait()
        server.close()

    run(scenario())
