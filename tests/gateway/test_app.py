"""The ASGI application: routes, errors, what every answer carries."""

import asyncio
import logging
import re
from pathlib import Path

import pytest

from gateway.app import ROUTES, App
from tests.gateway.harness import chat, read_answer, request_bytes, run, serving


def test_unknown_paths_and_methods(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for path in ("/", "/v1", "/v1/chat", "/v1/models/", "/v1/images", "/healthy"):
                found = await gateway.get(path)
                assert (found.status, found.json["error"]["code"]) == (404, "not_found")
            for path, methods in ROUTES.items():
                found = await gateway.request("PATCH", re.sub(r"\{\w+\}", "fake", path))
                code = None if path.startswith("/v1/messages") else "method_not_allowed"  # Anthropic's errors have none
                assert (found.status, found.json["error"].get("code")) == (405, code)
                assert found.headers["allow"] == ", ".join(sorted(methods)).lower()
            labels = 'endpoint="other",model="",outcome="invalid",status="404"'
            assert await gateway.metric(f"penstock_requests_total{{{labels}}}") == 6

    run(scenario())


def test_head_answers_as_get_without_a_body(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            reader, writer = await gateway.connect()
            writer.write(request_bytes("HEAD", "/health/live", b"", {"connection": "close"}))
            found = (await reader.read()).decode()
            assert found.startswith("HTTP/1.1 200 OK")
            assert found.endswith("\r\n\r\n")
            writer.close()

    run(scenario())


def test_every_answer_carries_its_request_id(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            for path, body in (("/v1/chat/completions", chat()), ("/tokenize", b"{"), ("/nowhere", b"")):
                found = await gateway.post(path, body, x_request_id="mine-7")
                assert found.headers["x-request-id"] == "mine-7"
                assert found.headers["x-penstock-variant"] == "default"
            one, two = await gateway.get("/health/live"), await gateway.get("/health/live")
            assert one.headers["x-request-id"] != two.headers["x-request-id"]

    run(scenario())


@pytest.mark.parametrize("headers", [{}, {"transfer-encoding": "chunked"}])
def test_too_large_a_body_is_answered_before_it_has_come(model_folder: Path, headers: dict[str, str]) -> None:
    async def scenario() -> None:
        async with serving(model_folder, max_body=1000) as gateway:
            reader, writer = await gateway.connect()
            if headers:
                body = b"3e9\r\n" + b"x" * 1001 + b"\r\n"  # and the last chunk never comes
                writer.write(request_bytes("POST", "/v1/completions", body, headers))
            else:
                writer.write(request_bytes("POST", "/v1/completions", b"x", {"content-length": "1001"}))
            found = await read_answer(reader)
            assert found.status == 413
            assert found.json["error"]["code"] == "request_too_large"
            assert found.headers["connection"] == "close"
            writer.close()

    run(scenario())


def test_a_large_body_that_is_sent_whole_still_gets_its_answer(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, max_body=1000) as gateway:
            found = await gateway.post("/v1/completions", b"x" * 3_000_000)
            assert found.status == 413
            assert (await gateway.get("/health/live")).status == 200

    run(scenario())


def test_a_body_up_to_the_limit(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder, max_body=300_000) as gateway:
            body = b'{"prompt": "x"}'
            found = await gateway.post("/tokenize", body + b" " * (300_000 - len(body)))
            assert found.status == 200
            assert (await gateway.post("/tokenize", body + b" " * (300_001 - len(body)))).status == 413

    run(scenario())


def test_draining_refuses_and_closes(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            reader, writer = await gateway.connect()
            writer.write(request_bytes("GET", "/v1/models", b""))
            assert (await read_answer(reader)).status == 200
            gateway.context.draining = True
            writer.write(request_bytes("POST", "/v1/chat/completions", chat()))
            found = await read_answer(reader)
            assert found.status == 503
            assert found.headers["connection"] == "close"
            assert found.headers["retry-after"] == "1"
            assert await reader.read() == b""
            assert (await gateway.get("/health/live")).status == 200
            assert (await gateway.get("/health/ready")).status == 503
            assert (await gateway.get("/metrics")).status == 200
            writer.close()

    run(scenario())


def test_a_fault_of_ours_is_logged_and_hidden(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            monkeypatch.setattr(gateway.model, "template", None)
            found = await gateway.post("/v1/chat/completions", chat(), x_request_id="broken-1")
            assert found.status == 500
            assert found.json["error"]["code"] == "internal_error"
            assert "NoneType" not in found.body.decode()
            assert gateway.context.in_flight == 0

    run(scenario())
    (record,) = [record for record in caplog.records if record.name == "gateway.app"]
    assert record.levelno == logging.ERROR
    assert "request=broken-1" in record.getMessage()
    assert record.exc_info is not None


def test_what_is_no_http_gets_an_error_object(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            reader, writer = await gateway.connect()
            writer.write(b"GARBAGE\r\n\r\n")
            found = await read_answer(reader)
            assert found.status == 400
            assert found.json["error"]["code"] == "invalid_value"
            assert await reader.read() == b""
            writer.close()

    run(scenario())


def test_pipelined_requests_are_answered_in_order(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            reader, writer = await gateway.connect()
            for text in ("one", "two", "three"):
                body = chat(text, stream=text == "two")
                writer.write(request_bytes("POST", "/v1/chat/completions", body))
            answers = [await read_answer(reader) for _ in range(3)]
            assert "one" in answers[0].json["choices"][0]["message"]["content"]
            assert answers[1].events[-1] == "[DONE]"
            assert "three" in answers[2].json["choices"][0]["message"]["content"]
            writer.close()

    run(scenario())


def test_other_scopes_are_refused() -> None:
    async def nothing(*_: object) -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="speaks HTTP, not websocket"):
        run(App(None)({"type": "websocket"}, nothing, nothing))  # type: ignore[arg-type]
