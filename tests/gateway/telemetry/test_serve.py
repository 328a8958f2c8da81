"""``penstock serve`` with telemetry's options, as a process of its own."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.gateway.telemetry.collector import collecting, values
from tests.serving import Serving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ANSWER = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}  # fmt: skip


class _Upstream(BaseHTTPRequestHandler):
    """Has one model, answers whoever asks politely, and breaks off otherwise."""

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if b"please" in body:
            self._reply(ANSWER)

    def _reply(self, said: Any) -> None:
        data = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


def test_what_a_command_line_turns_on() -> None:
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)
    upstream.daemon_threads = True
    thread = threading.Thread(target=upstream.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with collecting() as collector:
            words = ("--upstream", f"http://127.0.0.1:{upstream.server_address[1]}")
            telemetry = ("--otlp", collector.url, "--trace-sample", "100%", "--log-format", "json")
            with Serving(*words, *telemetry) as serving, serving.http() as http:
                asked = {"model": "m", "messages": [{"role": "user", "content": "hello, please"}]}
                assert http.post("/v1/chat/completions", json=asked).status_code == 200
                rude = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
                headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "rude-1"}
                assert http.post("/v1/chat/completions", json=rude, headers=headers).status_code >= 500
                page = http.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
                assert f'trace_id="{TRACE}"' in page
            # It has sent what was left before it ended.
            answered, failed = sorted(collector.requests(), key=lambda span: span.start_time_unix_nano)
            assert values(answered.attributes)["gen_ai.usage.output_tokens"] == 3
            assert failed.trace_id.hex() == TRACE
            assert "gen_ai.server.request.duration" in collector.metrics
    finally:
        upstream.shutdown()
        upstream.server_close()
        thread.join()
    lines = [json.loads(line) for line in serving.said]
    assert lines
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert [line["trace"] for line in lines if line.get("request") == "rude-1"]


def test_what_makes_no_sense_is_said_before_anything_starts() -> None:
    command = [sys.executable, "-m", "penstock", "serve", "--port", "0", "--otlp", "127.0.0.1:4318"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "'127.0.0.1:4318' is no address of an OTLP collector: write http://HOST:4318" in ended.stderr
