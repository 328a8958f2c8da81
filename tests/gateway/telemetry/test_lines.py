"""Log lines as text and as JSON."""

import asyncio
import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from gateway.telemetry.lines import JsonFormatter, about
from tests.gateway.harness import run
from tests.gateway.lane.upstream import Talk
from tests.gateway.traffic.harness import chat, configured
from tests.gateway.traffic.test_routes import targets

LOG = "models: {chat: {target: a, timeout: {total: 5s}}, plain: {target: a}}\nlog: {path: %s}\n"


@contextlib.contextmanager
def written(formatter: logging.Formatter | None = None) -> Iterator[io.StringIO]:
    """What is logged meanwhile."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(formatter or JsonFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield text
    finally:
        root.removeHandler(handler)


def test_a_line_is_an_object() -> None:
    with written() as text:
        logging.getLogger("gateway.x").warning('upstream=%s "down":\n%s', "a", "no", extra=about("r1", "ab" * 16))
    (line,) = text.getvalue().splitlines()
    said = json.loads(line)
    assert datetime.fromisoformat(said.pop("time")).tzinfo is not None
    assert said == {
        "level": "warning",
        "logger": "gateway.x",
        "message": 'upstream=a "down":\nno',
        "request": "r1",
        "trace": "ab" * 16,
    }


def test_a_traceback_stays_on_its_line() -> None:
    with written() as text:
        try:
            raise ValueError("of ours")
        except ValueError:
            logging.getLogger("gateway.x").exception("it failed")
    said = json.loads(text.getvalue())
    assert "ValueError: of ours" in said["exception"] and said["message"] == "it failed"
    assert "request" not in said and "trace" not in said


@pytest.mark.parametrize(("format", "begins"), [("json", b'{"time":"'), ("text", b"20")])
def test_what_the_option_says(format: str, begins: bytes) -> None:
    code = (
        "import logging; from gateway.telemetry.lines import set_up; "
        f"set_up('info', '{format}'); logging.getLogger('a').info('hello'); logging.getLogger('a').debug('no')"
    )

    async def scenario() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        assert not out and err.startswith(begins) and b"hello" in err and len(err.splitlines()) == 1

    run(scenario())


async def hanging_up(talk: Talk) -> None:
    talk.reset()


@pytest.mark.parametrize("here", [None, 0])
@pytest.mark.parametrize("model", ["chat", "plain"])
def test_lines_about_requests_name_them(here: int | None, model: str, tmp_path: Path, model_folder: Path) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    async def scenario() -> None:
        async with (
            targets(tmp_path, model_folder, hanging_up, here=here) as (section, made),
            configured(tmp_path, LOG % (tmp_path / "log") + section) as gateway,
        ):
            if here == 0:
                made[0].refuse = ("internal", "no")
            with written() as text:
                parent = f"00-{trace}-00f067aa0ba902b7-00"
                answer = await gateway.post(chat(model=model), x_request_id="my-id", traceparent=parent)
            assert answer.status >= 500
            lines = [json.loads(line) for line in text.getvalue().splitlines()]
            about_it = [line for line in lines if "my-id" in line["message"]]
            assert about_it and all(line["request"] == "my-id" for line in about_it)
            assert any(line.get("trace") == trace for line in about_it)

    run(scenario())
