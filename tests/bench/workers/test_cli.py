import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import zmq

import penstock


def asked(url: str, **body: Any) -> tuple[int, Any]:
    """The status and the JSON of a completion."""
    request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_process_answers_publishes_and_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "penstock", "bench", "worker", "--speed", "20", "--kv-tokens", "1000"]
    command += ["--block-size", "8", "--kv-events", f"ipc://{tmp_path}/events", "--kv-replay", f"ipc://{tmp_path}/old"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert "h200/llama-3.1-8b x 20, KV cache 1,000 tokens" in ready
        url = re.search(r"http://\S+", ready)
        assert url is not None
        status, answer = asked(url[0], prompt="word " * 100, max_tokens=3)
        assert (status, answer["usage"]["prompt_tokens"]) == (200, 125)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context.socket(zmq.DEALER) as asker:
            asker.connect(f"ipc://{tmp_path}/old")
            asker.send_multipart([b"", bytes(8)])
            assert asker.poll(10_000), "replays are answered though the worker is idle"
        context.term()
        status, refused = asked(url[0], prompt="word " * 100, max_tokens=2000)
        assert (status, "holds 1000" in refused["error"]["message"]) == (400, True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kv-replay", "tcp://127.0.0.1:1"], "--kv-replay needs --kv-events"),
        (["--speed", "0"], "speed 0"),
        (["--machine", "abacus"], "none of the known machines"),
        (["--token-bytes", "1"], "it has 2 to 8"),
        (["--block-size", "0"], "--block-size must be at least 1"),
        (["--kv-tokens", "7"], "a pool of 0 blocks"),
        (["--set", "max_running=none"], "max_running is a number"),
    ],
)
def test_what_cannot_be_simulated(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert penstock.main(["bench", "worker", *options]) == 2
    assert said in capsys.readouterr().err


def test_an_address_that_cannot_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert penstock.main(["bench", "worker", "--kv-events", "ipc:///nowhere/at/all"]) == 1
    assert "/nowhere/at/all" in capsys.readouterr().err
