"""``penstock chat`` against a small server on loopback: from a pipe, and on a pseudo-terminal."""

import argparse
import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway import chat


class Handler(BaseHTTPRequestHandler):
    """Answers with the last message in capitals; what it says can be bent by what it is asked."""

    server: "Server"
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _json(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        self._json(*self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        text = body["messages"][-1]["content"]
        if text == "refuse":
            self._json(400, {"error": {"message": "No such thing.", "type": "x", "param": None, "code": None}})
            return
        if text == "teapot":
            self.send_response(418)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        self._chunk({"role": "assistant", "content": ""})
        if text == "forever":
            self._forever()
            return
        for word in re.findall(r"\S+\s*", text.upper()):
            self._chunk({"content": word})
        if text == "break":
            return
        if text == "fail":
            self.wfile.write(b'event: error\ndata: {"error": {"message": "The worker died."}}\n\n')
            return
        if text == "garbage":
            self.wfile.write(b"data: nonsense\n\n")
            return
        self._chunk({}, "length" if text == "long" else "stop")
        self.wfile.write(b'data: {"choices": [], "usage": {}}\n\ndata: [DONE]\n\n')

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> None:
        chunk = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        self.wfile.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")
        self.wfile.flush()

    def _forever(self) -> None:
        try:
            while not self.server.closing.wait(0.02):
                self._chunk({"content": "more "})
        except (BrokenPipeError, ConnectionResetError):
            self.server.cancelled.set()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: tuple[int, Any] = (200, {"data": [{"id": "parrot"}, {"id": "other"}]})
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = threading.Event()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


class Talk:
    """The result of one run with input from a pipe."""

    def __init__(self, text: str, *arguments: str) -> None:
        parser = argparse.ArgumentParser()
        chat.add_arguments(parser)
        out, err = io.StringIO(), io.StringIO()
        stdin, sys.stdin = sys.stdin, io.StringIO(text)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self.status = chat.run(parser.parse_args(arguments))
        finally:
            sys.stdin = stdin
        self.out, self.err = out.getvalue(), err.getvalue()


def test_each_line_is_a_question(server: Server) -> None:
    done = Talk("hello there\n\n  你好 😀 \n", "--url", server.url)
    assert (done.status, done.out, done.err) == (0, "HELLO THERE\n你好 😀\n", "")
    first, second = server.bodies
    assert first == {"model": "parrot", "messages": [{"role": "user", "content": "hello there"}], "stream": True}
    assert second["messages"] == [
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "HELLO THERE"},
        {"role": "user", "content": "你好 😀"},
    ]


def test_options(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    done = Talk(
        "hi\n",
        *("--url", server.url + "/v1/", "--model", "other", "--system", "Be kind.", "--temperature", "0"),
        *("--max-tokens", "5", "--api-key-env", "SOME_KEY"),
    )
    assert done.status == 0
    assert server.bodies == [
        {
            "model": "other",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
            "stream": True,
            "temperature": 0.0,
            "max_tokens": 5,
        }
    ]


def test_api_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    assert Talk("", "--url", server.url, "--api-key-env", "SOME_KEY").status == 0
    assert {name.lower(): value for name, value in server.headers[0].items()}["authorization"] == "Bearer secret"
    monkeypatch.delenv("SOME_KEY")
    done = Talk("", "--url", server.url, "--api-key-env", "SOME_KEY")
    assert done.status == 2 and "SOME_KEY is not set" in done.err


def test_commands(server: Server) -> None:
    lines = ["hi", "/clear", "/system", "/system Be brief.", "/system", "/etc/hosts", "/help", "/wat", "/exit", "never"]
    done = Talk("\n".join(lines), "--url", server.url)
    assert (done.status, done.out) == (0, "HI\n/ETC/HOSTS\n")
    assert server.bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "/etc/hosts"},
    ]
    assert all(text in done.err for text in ("(no system message)", "Be brief.", "/clear  ", "/wat is no command"))


def test_clear_keeps_the_system_message(server: Server) -> None:
    Talk("one\n/clear\ntwo\n", "--url", server.url, "--system", "S")
    assert [message["content"] for message in server.bodies[1]["messages"]] == ["S", "two"]


def test_no_server() -> None:
    with Server() as closed:
        url = closed.url
    done = Talk("hi\n", "--url", url)
    assert done.status == 1 and done.out == ""
    assert f"no server answers at {url}" in done.err and "start one with: penstock serve" in done.err
    assert "start one with: penstock serve" in Talk("hi\n", "--url", url, "--model", "m").err


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((503, {"error": {"message": "Still loading."}}), "503: Still loading."),
        ((200, {"data": []}), "lists no model"),
        ((200, "hello"), "lists no model"),
    ],
)
def test_models_that_can_not_be_read(server: Server, models: tuple[int, Any], message: str) -> None:
    server.models = models
    done = Talk("hi\n", "--url", server.url)
    assert done.status == 1 and message in done.err


@pytest.mark.parametrize(
    ("question", "message", "out"),
    [
        ("refuse", "400: No such thing.", ""),
        ("teapot", "418: no reason given", ""),
        ("break", "closed the connection before its end", "BREAK"),
        ("fail", "the answer broke off: The worker died.", "FAIL"),
        ("garbage", "no JSON: 'nonsense'", "GARBAGE"),
    ],
)
def test_failures_end_a_script(server: Server, question: str, message: str, out: str) -> None:
    done = Talk(f"{question}\nnever\n", "--url", server.url)
    assert (done.status, done.out) == (1, out)
    assert message in done.err and len(server.bodies) == 1


def test_cut_off(server: Server) -> None:
    done = Talk("long\n", "--url", server.url)
    assert (done.status, done.out) == (0, "LONG\n")
    assert "reached the limit of tokens" in done.err


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://[::1"])
def test_bad_url(url: str) -> None:
    done = Talk("hi\n", "--url", url)
    assert done.status == 1 and done.err.startswith("penstock chat: ")


def test_a_question_without_an_answer_is_forgotten(server: Server) -> None:
    import httpx2

    with httpx2.Client() as client:
        conversation = chat.Conversation(client, chat.Endpoint(server.url, "m", {}), None)
        with pytest.raises(chat.ChatError):
            list(conversation.ask("refuse"))
        assert conversation.messages == []
        answer = conversation.ask("forever")
        assert next(answer) == "more "
        answer.close()
        assert server.cancelled.wait(10)
        assert conversation.messages == [
            {"role": "user", "content": "forever"},
            {"role": "assistant", "content": "more "},
        ]


CTRL_C, CTRL_D = "\x03", "\x04"
PROMPT = "\x1b[?2004h"
"""What the terminal is told when a line is to be typed: that pasted text be marked."""


class Terminal:
    """A chat in a process of its own, on a pseudo-terminal."""

    def __init__(self, url: str, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        program = (
            "import argparse, fcntl, sys, termios; from gateway import chat; "
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0); "  # so that ctrl-C on it is a signal
            "parser = argparse.ArgumentParser(); chat.add_arguments(parser); "
            "sys.exit(chat.run(parser.parse_args()))"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "--url", url, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str, timeout: float = 60) -> None:
        """Read until ``text`` has been shown since the last `expect`."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"{text!r} did not come; the terminal shows {self.seen!r}")
            try:
                self.seen += os.read(self._master, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the program ended before {text!r}: {self.seen!r}") from None
        self.seen = self.seen.partition(text)[2]

    def wait(self) -> int:
        return self._process.wait(60)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)


def test_ctrl_c_stops_the_answer_not_the_program(server: Server) -> None:
    with Terminal(server.url) as terminal:
        terminal.expect("parrot at ")
        terminal.expect(PROMPT)
        terminal.type("forever\r")
        terminal.expect("more more")
        assert not server.cancelled.is_set()
        terminal.type(CTRL_C)
        terminal.expect("(stopped; ctrl-D leaves)")
        assert server.cancelled.wait(60)  # the connection is closed, so the server knows
        terminal.expect(PROMPT)
        terminal.type("and again\r")
        terminal.expect("AND AGAIN")
        terminal.expect(PROMPT)
        terminal.type(CTRL_C)  # on the prompt it does not leave either
        terminal.expect("(stopped; ctrl-D leaves)")
        terminal.expect(PROMPT)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    stopped, question = server.bodies[1]["messages"][-2:]
    assert stopped["role"] == "assistant" and stopped["content"].startswith("more more")
    assert question["content"] == "and again"


def test_terminal(server: Server, tmp_path: Any) -> None:
    with Terminal(server.url, "--history", str(tmp_path / "lines")) as terminal:
        terminal.expect(PROMPT)
        terminal.type("refuse\r")
        terminal.expect("400: No such thing.")
        terminal.expect(PROMPT)
        terminal.type("/help\r")
        terminal.expect("forget the conversation")
        terminal.expect(PROMPT)
        terminal.type("one\x1b\rtwo\r")
        terminal.expect("ONE")
        terminal.expect(PROMPT)
        terminal.type("/exit\r")
        assert terminal.wait() == 0
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    assert "+/help" in (tmp_path / "lines").read_text()


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert chat._harmless("a\x1b[2Jb\nc\td\x9be\x07é😀") == "a[2Jb\nc\tdeé😀"


def test_help_teaches() -> None:
    parser = argparse.ArgumentParser("penstock chat")
    chat.add_arguments(parser)
    text = parser.format_help()
    assert "examples:" in text and "/clear" in text and "--api-key-env NAME" in text
