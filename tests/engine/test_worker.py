"""The worker as a process of its own, spoken to over its link as a gateway does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
import zmq
from transformers import AutoModelForCausalLM

from engine import worker as worker_module
from engine.engine import Engine
from engine.events import packed
from engine.link import Blocks, Drain, Failed, Follow, Hello, Load, Sampling, Step, Submit
from engine.options import WorkerOptions
from engine.pipeline import Outcome
from scheduler.blocks import chain_hashes, root_hash, short_hash
from tests.engine.link_client import LinkClient, progress_of, start_worker, tokens_of
from tests.models import CONTEXT, llama_folder

GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
LONG = Sampling(max_tokens=400, temperature=0.0, ignore_eos=True)
PROMPT = [5, 17, 3, 99, 42, 8, 250, 7, 31]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def worker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a worker that several tests share."""
    path = tmp_path_factory.mktemp("worker") / "w.sock"
    with start_worker(model, path, "--dtype", "float32", "--kv-memory", "4MiB") as process:
        with LinkClient(path, process) as client:
            client.hello()
        yield path
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], LinkClient]]:
    """A worker that the test may harm, and a client of it."""
    path = tmp_path / "w.sock"
    process = start_worker(
        model, path, "--dtype", "float32", "--kv-memory", "4MiB", "--kv-events", f"ipc://{tmp_path}/events",
        "--kv-replay", f"ipc://{tmp_path}/replay",
    )  # fmt: skip
    with process, LinkClient(path, process) as client:
        yield process, client
        process.kill()


def expected_greedy(folder: Path, prompt: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return [int(token) for token in made[0, len(prompt) :]]


def test_it_says_how_loading_goes_then_hello_then_answers(
    own: tuple[subprocess.Popen[str], LinkClient], model: Path
) -> None:
    process, client = own
    hello = client.hello()
    assert (hello.pid, hello.folder, hello.dtype) == (process.pid, str(model), "float32")
    assert any(progress.total for progress in progress_of(client))
    client.submit(1, PROMPT, GREEDY)
    outputs = client.answer(1)
    assert tokens_of(outputs) == expected_greedy(model, PROMPT, 12)
    assert [output.finish for output in outputs] == [None] * 11 + ["length"]
    assert all(logprob < 0 for output in outputs for logprob in output.logprobs)
    assert all(entropy > 0 for output in outputs for entropy in output.entropies)


def test_a_second_identical_prompt_is_served_from_the_cache(worker: Path) -> None:
    with LinkClient(worker) as client:
        client.hello()
        prompt = list(range(60, 100))
        client.submit(1, prompt, GREEDY)
        first = client.answer(1)
        client.submit(2, prompt, GREEDY)
        second = client.answer(2)
    assert (first[0].cached, second[0].cached) == (0, 32)
    assert tokens_of(first) == tokens_of(second)


def test_a_salt_keeps_prefixes_apart(worker: Path) -> None:
    with LinkClient(worker) as client:
        client.hello()
        tokens = b"".join(token.to_bytes(4, "little") for token in range(100, 140))
        for number, salt in enumerate(["a", "b", "a"]):
            client.send(Submit(number, tokens, GREEDY, salt=salt))
            client.answer(number)
        assert [client.outputs(number)[0].cached for number in range(3)] == [0, 0, 32]


def test_several_gateways_each_hear_of_their_own(worker: Path) -> None:
    with LinkClient(worker) as one, LinkClient(worker) as two:
        one.hello()
        two.hello()
        one.submit(1, PROMPT, GREEDY)
        two.submit(1, PROMPT[:4], GREEDY)
        mine, theirs = tokens_of(one.answer(1)), tokens_of(two.answer(1))
        assert mine != theirs
        assert len(one.outputs(1)) == len(two.outputs(1)) == 12


@pytest.mark.parametrize(
    ("tokens", "sampling", "code", "said"),
    [
        (b"", GREEDY, "invalid_request", "no list of int32"),
        (b"\1\0\0", GREEDY, "invalid_request", "no list of int32"),
        (b"\xff\xff\xff\xff", GREEDY, "invalid_request", "token id -1 is outside the vocabulary of 331"),
        (b"\0\0\1\0", GREEDY, "invalid_request", "token id 65536 is outside"),
        (b"\1\0\0\0" * CONTEXT, GREEDY, "context_length_exceeded", "4096 tokens, but prompt and answer may have 4096"),
        (b"\1\0\0\0", Sampling(max_tokens=0), "invalid_request", "max_tokens must be at least 1"),
    ],
)
def test_nonsense_is_refused_and_harms_nothing(
    worker: Path, tokens: bytes, sampling: Sampling, code: str, said: str
) -> None:
    with LinkClient(worker) as client:
        client.hello()
        client.send(Submit(1, tokens, sampling))
        failed = client.wait_for(Failed)
        assert (failed.id, failed.code) == (1, code)
        assert said in failed.message
        client.submit(2, PROMPT, GREEDY)
        assert len(client.answer(2)) == 12


def test_an_adapter_it_lacks_and_a_number_in_use_are_refused(worker: Path) -> None:
    with LinkClient(worker) as client:
        client.hello()
        client.send(Submit(1, b"\1\0\0\0", GREEDY, adapter="lora"))
        assert "no adapter 'lora'" in client.wait_for(Failed).message
        client.submit(2, PROMPT, LONG)
        client.submit(2, PROMPT, LONG)
        assert "running already" in client.wait_for(Failed).message
        client.abort(2)
        client.idle()


def test_an_abort_frees_everything_within_a_step_and_is_final(worker: Path) -> None:
    with LinkClient(worker) as client:
        client.hello()
        client.submit(1, PROMPT, LONG)
        client.wait_for(Step)
        client.abort(1, 999)
        idle = client.idle()
        assert idle.kv_used == 0
        heard = len(client.outputs(1))
        client.submit(2, PROMPT, GREEDY)
        client.answer(2)
        assert len(client.outputs(1)) == heard < 400


def test_a_gateway_that_leaves_takes_its_requests_with_it(worker: Path) -> None:
    with LinkClient(worker) as watcher:
        watcher.hello()
        with LinkClient(worker) as client:
            client.hello()
            for number in range(8):
                client.submit(number, [number + 1, *PROMPT], LONG)
            client.wait_for(Step)
            watcher.wait_for(Load, lambda load: load.running > 0)
        assert watcher.idle().kv_used == 0


def test_a_seed_reproduces_whatever_else_runs(worker: Path) -> None:
    sampling = Sampling(max_tokens=20, temperature=1.0, seed=7, ignore_eos=True)
    with LinkClient(worker) as client:
        client.hello()
        client.submit(1, PROMPT, sampling)
        alone = tokens_of(client.answer(1))
        for number in range(10, 20):
            client.submit(number, [number, *PROMPT], Sampling(max_tokens=30, seed=number, ignore_eos=True))
        client.submit(2, PROMPT, sampling)
        assert tokens_of(client.answer(2)) == alone
        client.submit(3, PROMPT, Sampling(max_tokens=20, temperature=1.0, ignore_eos=True))
        assert tokens_of(client.answer(3)) != alone


def test_draining_finishes_what_runs_refuses_what_comes_and_exits_cleanly(
    own: tuple[subprocess.Popen[str], LinkClient],
) -> None:
    process, client = own
    client.hello()
    client.submit(1, PROMPT, LONG)
    client.wait_for(Step)
    client.send(Drain())
    client.submit(2, PROMPT, GREEDY)
    assert client.wait_for(Failed).code == "draining"
    assert len(client.answer(1)) == 400
    assert process.wait(20) == 0


def test_sigterm_drains(own: tuple[subprocess.Popen[str], LinkClient]) -> None:
    process, client = own
    client.hello()
    client.submit(1, PROMPT, LONG)
    client.wait_for(Step)
    process.send_signal(signal.SIGTERM)
    assert len(client.answer(1)) == 400
    assert process.wait(20) == 0


def test_kv_events_tell_what_is_cached_and_can_be_replayed(
    own: tuple[subprocess.Popen[str], LinkClient], tmp_path: Path
) -> None:
    _, client = own
    hello = client.hello()
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.connect(hello.kv_events)
    subscriber.subscribe("kv-events")
    time.sleep(0.3)
    prompt = list(range(1, 41))
    client.submit(1, prompt, Sampling(max_tokens=10, temperature=0.0, ignore_eos=True))
    answer = tokens_of(client.answer(1))
    stored: list[int] = []
    frames: list[list[bytes]] = []
    while len(stored) < 48:
        assert subscriber.poll(10_000), "no event came"
        frames.append(subscriber.recv_multipart())
        _, events, rank = msgspec.msgpack.decode(frames[-1][2])
        assert rank == 0
        for event in events:
            assert (event["type"], event["block_size"]) == ("BlockStored", 16)
            stored += event["token_ids"]
    assert stored == (prompt + answer)[:48]
    assert [int.from_bytes(sequence, "big") for _, sequence, _ in frames] == list(range(len(frames)))

    asker = context.socket(zmq.DEALER)
    asker.connect(hello.kv_replay)
    asker.send_multipart([b"", (0).to_bytes(8, "big")])
    replayed = []
    while True:
        assert asker.poll(10_000), "no replay came"
        _, sequence, payload = asker.recv_multipart()
        if sequence == (-1).to_bytes(8, "big", signed=True):
            break
        replayed.append((sequence, payload))
    assert replayed == [(sequence, payload) for _, sequence, payload in frames]
    context.destroy(linger=0)


def test_it_stops_when_its_parent_has_gone(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    script = (
        "import sys, time; from pathlib import Path; from tests.engine.link_client import start_worker\n"
        "process = start_worker(Path(sys.argv[1]), Path(sys.argv[2])); print(process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(model), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        with LinkClient(path) as client:
            client.hello()
            os.kill(parent.pid, signal.SIGKILL)
            with pytest.raises(ConnectionError):
                client.wait_for(Hello, lambda hello: False)
        psutil.wait_procs([orphan], timeout=20)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_a_model_that_cannot_be_loaded_ends_it_with_a_reason(tmp_path: Path) -> None:
    empty = tmp_path / "nothing"
    empty.mkdir()
    process = start_worker(empty, tmp_path / "w.sock")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "config.json" in said
    assert "Traceback" not in said


def test_a_gpu_that_fails_ends_it_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __init__(self, options: WorkerOptions) -> None:
            pass

        def run(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be …")

    monkeypatch.setattr(worker_module, "Worker", Broken)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert worker_module.run_worker(WorkerOptions(listen="unix:/nowhere")) == 1
    said = capsys.readouterr().err
    assert said == "penstock: error: the GPU failed: CUDA error: an illegal memory access was encountered\n"


def test_a_fault_of_ours_is_not_taken_for_one_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, options: WorkerOptions) -> None:
            pass

        def run(self) -> None:
            raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(worker_module, "Worker", Broken)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(RuntimeError, match="dictionary"):
        worker_module.run_worker(WorkerOptions(listen="unix:/nowhere"))


def test_who_follows_hears_what_is_cached(worker: Path) -> None:
    prompt = list(range(200, 248))
    hashes = [short_hash(digest) for digest in chain_hashes(prompt, 16, root_hash("", ""))]
    with LinkClient(worker) as client:
        assert "blocks" in client.hello().capabilities
        client.send(Follow())
        there = client.wait_for(Blocks)
        assert there.cleared and packed(hashes[:1]) not in there.stored
        client.submit(1, prompt, GREEDY)
        client.wait_for(Blocks, lambda blocks: packed(hashes) in blocks.stored)
    with LinkClient(worker) as client:
        client.hello()
        client.send(Follow())
        assert packed(hashes) in client.wait_for(Blocks).stored


def test_what_one_gateway_places_the_others_hear_of_while_a_step_computes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepping, go_on = threading.Event(), threading.Event()
    step = Engine.step

    def long_step(engine: Engine) -> Outcome | None:
        if engine.busy:
            stepping.set()
            assert go_on.wait(60)
        return step(engine)

    monkeypatch.setattr(Engine, "step", long_step)
    path = tmp_path / "w.sock"
    options = WorkerOptions(listen=f"unix:{path}", model=str(model), dtype="float32", kv_memory=4 << 20)
    worker = worker_module.Worker(options)
    thread = threading.Thread(target=worker.run)
    thread.start()
    with LinkClient(path) as one, LinkClient(path) as two:
        one.hello()
        two.hello()
        one.submit(1, PROMPT, GREEDY)
        assert stepping.wait(60)
        two.wait_for(Load, lambda load: load.waiting + load.running == 1)
        one.submit(2, list(range(40)), GREEDY)
        assert two.wait_for(Load, lambda load: load.waiting_tokens >= 40).waiting_tokens == 49
        go_on.set()
        assert len(tokens_of(one.answer(1))) == len(tokens_of(one.answer(2))) == 12
        two.idle()
        two.send(Drain())
        thread.join(60)
