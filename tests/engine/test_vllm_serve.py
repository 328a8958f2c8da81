"""``penstock serve --engine vllm`` as a client sees it: ``make test-vllm VLLM_PYTHON=…``."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from openai import BadRequestError, OpenAI

from tests.serving import Serving

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python that has vLLM")]

MODEL = "penstock-demo"
QUESTION = "Hello, who are you?"


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    words = [
        *("--engine", "vllm", "--vllm-python", PYTHON, "--vllm-args", '{"enforce_eager": true}', "--replicas", "2"),
        *("--threads", "1", "--dtype", "float32", "--kv-memory", "64MiB", "--block-size", "32"),
    ]
    with Serving(*words, timeout=280) as serving:
        yield serving


@pytest.fixture
def client(served: Serving) -> OpenAI:
    return served.client(timeout=120)


def workers(served: Serving) -> list[psutil.Process]:
    return psutil.Process(served.process.pid).children()


def story(client: OpenAI, number: int) -> tuple[str, int]:
    """The text of a long greedy answer, streamed, and its number of tokens."""
    text, tokens = "", 0
    stream = client.completions.create(
        model=MODEL, prompt=f"{number} Once upon a time", max_tokens=400, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    for chunk in stream:
        text += "".join(choice.text for choice in chunk.choices)
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return text, tokens


def test_the_official_client(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=80, temperature=0, logprobs=True,
        top_logprobs=2,
    )  # fmt: skip
    said = answer.choices[0]
    assert said.finish_reason == "stop"
    assert said.message.content
    assert said.logprobs is not None
    assert said.logprobs.content is not None
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in said.logprobs.content)
    stopped = client.completions.create(model=MODEL, prompt="a b c", max_tokens=40, stop=[" "], temperature=0)
    assert " " not in stopped.choices[0].text
    drawn = client.completions.create(model=MODEL, prompt="Once", max_tokens=8, n=3, temperature=1.0, seed=4)
    assert len(drawn.choices) == 3


def test_a_schema_is_kept_to(client: OpenAI) -> None:
    schema = {
        "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
        "additionalProperties": False,
    }  # fmt: skip
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "A colour?"}], max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}},
    )  # fmt: skip
    assert answer.choices[0].message.content in ('{"colour": "red"}', '{"colour": "blue"}')


def test_embeddings_are_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="makes no embeddings"):
        client.embeddings.create(model=MODEL, input="Hello")


def test_a_client_that_leaves_frees_its_worker(served: Serving, client: OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while served.metric("penstock_worker_running") or served.metric("penstock_worker_kv_used_tokens"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_harmed_in_the_middle_of_answers_loses_none(
    served: Serving, client: OpenAI, harm: signal.Signals
) -> None:
    expected = [story(client, number) for number in range(6)]
    assert {tokens for _, tokens in expected} == {400}
    found: dict[int, tuple[str, int]] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.__setitem__(number, story(client, number)))
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    before = workers(served)
    assert len(before) == 2
    deadline = time.monotonic() + 60
    while served.metric("penstock_worker_running") < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    below = before[0].children(recursive=True)
    before[0].send_signal(harm)
    for thread in threads:
        thread.join(120)
    assert [found[number] for number in range(6)] == expected
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
    deadline = time.monotonic() + 200
    while sum(worker.is_running() for worker in workers(served)) < 2 or served.metric("penstock_worker_up") < 2:
        assert time.monotonic() < deadline, "another worker takes its place"
        time.sleep(0.5)
    assert story(client, 0) == expected[0]


def test_a_rolling_restart_under_load_fails_nothing(served: Serving, client: OpenAI) -> None:
    expected = [story(client, number) for number in range(2)]
    before = workers(served)
    ended = threading.Event()
    found: list[tuple[int, tuple[str, int]]] = []

    def ask(number: int) -> None:
        while not ended.is_set():
            found.append((number, story(client, number)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    served.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 400
    while any(worker.is_running() for worker in before) or served.metric("penstock_worker_up") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    ended.set()
    for thread in threads:
        thread.join(120)
    assert {number for number, _ in found} == {0, 1}
    assert [one for one in found if one[1] != expected[one[0]]] == []
