"""``/v1/files``, through the official client and without it."""

import asyncio
import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.app import App
from gateway.batches.folder import DataFolder
from gateway.batches.service import Batches
from tests.gateway.batches.builders import with_files
from tests.gateway.harness import read_answer, request_bytes, run, serving


def test_through_the_client(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path / "d") as gateway, gateway.openai() as client:
            content = bytes(range(256)) * 3000
            made = await client.files.create(
                file=("naïve name.bin", content),
                purpose="user_data",
                expires_after={"anchor": "created_at", "seconds": 3600},
            )
            assert (made.object, made.bytes, made.purpose) == ("file", len(content), "user_data")
            assert made.expires_at == made.created_at + 3600
            assert await client.files.retrieve(made.id) == made
            assert await client.files.wait_for_processing(made.id) == made
            downloaded = await client.files.content(made.id)
            assert downloaded.content == content
            assert downloaded.response.headers["content-type"] == "application/octet-stream"
            other = await client.files.create(file=tmp_path_file(tmp_path), purpose="batch")
            assert (other.filename, other.bytes) == ("lines.jsonl", 6)
            assert [file.id async for file in client.files.list()] == [other.id, made.id]
            assert [file.id async for file in client.files.list(limit=1, order="asc")] == [made.id, other.id]
            assert [file.id async for file in client.files.list(purpose="batch")] == [other.id]
            assert (await client.files.list(limit=1)).has_more is True
            deleted = await client.files.delete(made.id)
            assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "file")
            for call in (client.files.retrieve, client.files.content, client.files.delete):
                with pytest.raises(openai.NotFoundError, match="not found"):
                    await call(made.id)

    run(scenario())


def tmp_path_file(folder: Path) -> Path:
    path = folder / "lines.jsonl"
    path.write_bytes(b"a\nb\nc\n")
    return path


@pytest.mark.parametrize("purpose", ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"])
def test_every_purpose(model_folder: Path, tmp_path: Path, purpose: Any) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path / "d") as gateway, gateway.openai() as client:
            assert (await client.files.create(file=b"x", purpose=purpose)).purpose == purpose

    run(scenario())


def test_what_is_refused(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path / "d", max_file=10_000) as gateway, gateway.openai() as client:
            with pytest.raises(openai.BadRequestError, match="'party' is not one of"):
                await client.files.create(file=b"x", purpose="party")  # type: ignore[arg-type]
            with pytest.raises(openai.BadRequestError, match="between 3600 and"):
                await client.files.create(
                    file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 1}
                )
            with pytest.raises(openai.APIStatusError, match="accepts 10000 bytes") as refused:
                await client.files.create(file=b"x" * 10_001, purpose="batch")
            assert refused.value.status_code == 413
            found = await gateway.post("/v1/files", {"purpose": "batch"}, content_type="application/json")
            assert (found.status, found.json["error"]["param"]) == (400, "content-type")
            for query in ("limit=0", "limit=10001", "limit=x", "order=up", "limit=" + "9" * 5000, "limit=%ff"):
                found = await gateway.get(f"/v1/files?{query}")
                assert (found.status, found.json["error"]["code"]) == (400, "invalid_value")
            for path in ("/v1/files/..%2f..%2flock", "/v1/files/a.json"):
                assert (await gateway.get(path)).status == 404
            assert os.listdir(tmp_path / "d" / "files") == []

    run(scenario())


def test_a_client_that_leaves_within_an_upload(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path / "d") as gateway:
            _, writer = await gateway.connect()
            body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"y" * 600_000
            headers = {"content-type": "multipart/form-data; boundary=x", "content-length": "1000000"}
            writer.write(request_bytes("POST", "/v1/files", body, headers))
            await writer.drain()
            files = tmp_path / "d" / "files"
            while not (files.exists() and any(one.stat().st_size for one in files.iterdir())):
                await asyncio.sleep(0.005)
            writer.close()
            while os.listdir(files):
                await asyncio.sleep(0.005)
            assert await gateway.metric("penstock_disconnects_total") == 1

    run(scenario())


def test_a_client_that_leaves_within_a_download(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path / "d") as gateway, gateway.openai() as client:
            file = await client.files.create(file=bytes(20_000_000), purpose="user_data")
            reader, writer = await gateway.connect()
            writer.write(request_bytes("GET", f"/v1/files/{file.id}/content", b""))
            await reader.readexactly(100_000)
            writer.close()
            while not await gateway.metric("penstock_disconnects_total"):
                await asyncio.sleep(0.005)

    run(scenario())


def test_size_takes_no_memory(model_folder: Path, tmp_path: Path) -> None:
    size = 60_000_000

    async def scenario() -> int:
        async with with_files(model_folder, tmp_path / "d") as gateway:
            head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
            tail = b'\r\n--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nevals\r\n--x--\r\n'
            headers = {
                "content-type": "multipart/form-data; boundary=x", "content-length": f"{len(head) + size + len(tail)}",
                "connection": "close",
            }  # fmt: skip
            block = bytes(1_000_000)
            reader, writer = await gateway.connect()
            tracemalloc.start()
            writer.write(request_bytes("POST", "/v1/files", head, headers))
            for _ in range(size // len(block)):
                writer.write(block)
                await writer.drain()
            writer.write(tail)
            file = (await read_answer(reader)).json
            assert file["bytes"] == size
            writer.close()
            reader, writer = await gateway.connect()
            writer.write(request_bytes("GET", f"/v1/files/{file['id']}/content", b"", {"connection": "close"}))
            received = 0
            while data := await reader.read(1 << 16):
                received += len(data)
            assert received > size
            writer.close()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return peak

    assert run(scenario()) < 12_000_000


def test_a_folder_in_use_is_said_and_the_rest_goes_on(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        other = DataFolder(tmp_path / "d")
        async with with_files(model_folder, tmp_path / "d") as gateway:
            for method, path in (("GET", "/v1/files"), ("GET", "/v1/batches/batch_1"), ("DELETE", "/v1/files/file-1")):
                found = await gateway.request(method, path)
                assert (found.status, found.json["error"]["code"]) == (503, "unavailable")
                assert "is in use by another process" in found.json["error"]["message"]
            assert (await gateway.get("/v1/models")).status == 200
            other.close()
            assert (await gateway.get("/v1/files")).status == 200

    run(scenario())


def test_no_folder_at_all(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            assert (await gateway.get("/v1/files")).status == 503
            batches = gateway.context.batches = Batches(App(gateway.context), None)
            await batches.start()
            found = await gateway.get("/v1/files")
            assert found.status == 503
            assert "--data-dir" in found.json["error"]["message"]
            await batches.close()

    run(scenario())


def test_nothing_is_made_before_it_is_needed(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path / "d") as gateway:
            assert (await gateway.get("/v1/models")).status == 200
            assert not (tmp_path / "d").exists()
            assert (await gateway.get("/v1/files")).json["data"] == []
            assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700

    run(scenario())


def test_a_full_disk_is_said(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gateway.batches.files.write_all", full)

    async def scenario() -> None:
        async with with_files(model_folder, tmp_path / "d") as gateway, gateway.openai() as client:
            with pytest.raises(openai.InternalServerError, match="It can't be kept: No space left") as refused:
                await client.files.create(file=b"x", purpose="batch")
            assert refused.value.status_code == 503
            assert os.listdir(tmp_path / "d" / "files") == []

    run(scenario())


def test_a_file_that_was_cut_breaks_the_download_off(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path / "d") as gateway, gateway.openai() as client:
            file = await client.files.create(file=bytes(1_000_000), purpose="user_data")
            os.truncate(tmp_path / "d" / "files" / file.id, 500_000)
            with pytest.raises((openai.APIConnectionError, Exception), match=r"peer closed|Connection error"):
                await client.files.content(file.id)
            assert (await gateway.get("/health/live")).status == 200

    run(scenario())
