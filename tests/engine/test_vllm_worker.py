"""vLLM as our worker, the real one, spoken to over the link as a gateway does: ``make test-vllm VLLM_PYTHON=…``."""

import json
import os
import signal
import subprocess
import time
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
import zmq
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from engine.link import Blocks, Drain, Failed, Follow, Load, LoadAdapter, Output, Sampling, Step, Submit
from engine.options import VLLM_START
from scheduler.blocks import chain_hashes, root_hash, short_hash
from tests.engine.link_client import LinkClient, progress_of, tokens_of
from tests.models import CONTEXT, VOCABULARY, llama_folder

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python that has vLLM")]

GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
LONG = Sampling(max_tokens=1500, temperature=0.0, ignore_eos=True)
PROMPT = [5, 17, 3, 99, 42, 8, 250, 7, 31]
PROMPTS = [PROMPT, [1], list(range(20, 90)), [7, 7, 7, 300, 12] * 40]
BLOCK = 32
RANK, SCALE = 8, 2.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with heads of a size that vLLM's kernels for CPUs have."""
    folder = llama_folder(tmp_path_factory.mktemp("llama"), tokenizer=True, head_dim=32)
    names = {"eos_token": "</s>", "bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter in PEFT's format, on the queries and values of every layer."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in _adapted(reference(model)):
        key = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, weight.shape[1]) * 0.3
        tensors[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], RANK) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": int(RANK * SCALE), "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": str(model),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def start(model: Path, path: Path, *options: str) -> "subprocess.Popen[str]":
    command = [
        PYTHON, *VLLM_START, str(model), "--listen", f"unix:{path}", "--parent-pid", str(os.getpid()),
        "--dtype", "float32", "--kv-memory", "16MiB", "--block-size", str(BLOCK), "--vllm-args",
        '{"enforce_eager": true}', *options,
    ]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def worker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with the socket of a worker that several tests share."""
    folder = tmp_path_factory.mktemp("worker")
    path = folder / "w.sock"
    process = start(model, path, "--adapters", "2", "--kv-events", f"ipc://{folder}/events")
    with process:
        with LinkClient(path, process, timeout=240) as client:
            client.hello()
        yield folder
        with LinkClient(path) as client:
            client.hello()
            client.send(Drain())
            assert process.wait(20) == 0


@pytest.fixture
def client(worker: Path) -> Iterator[LinkClient]:
    with LinkClient(worker / "w.sock") as client:
        client.hello()
        yield client


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", LinkClient]]:
    """A worker that the test may harm, and a client of it."""
    path = tmp_path / "w.sock"
    process = start(model, path)
    with process, LinkClient(path, process, timeout=240) as client:
        yield process, client
        process.kill()


@cache
def reference(folder: Path) -> LlamaForCausalLM:
    return _endless(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def _endless(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model, which ignores its end-of-sequence token."""
    model.generation_config.eos_token_id = None
    return model


def greedy(model: LlamaForCausalLM, prompt: Sequence[int], count: int) -> list[int]:
    made = model.generate(torch.tensor([list(prompt)]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return [int(token) for token in made[0, len(prompt) :]]


def logprobs(model: LlamaForCausalLM, tokens: Sequence[int]) -> torch.Tensor:
    """[len(tokens), vocabulary]: at each place, what follows."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(tokens)])).logits[0]
        return logits.log_softmax(-1)


def _adapted(model: LlamaForCausalLM) -> list[tuple[str, torch.Tensor]]:
    return [(name, weight) for name, weight in model.named_parameters() if "q_proj" in name or "v_proj" in name]


def packed(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


def ask(client: LinkClient, number: int, prompt: Sequence[int], sampling: Sampling, **more: Any) -> list[Output]:
    client.send(Submit(number, packed(prompt), sampling, **more))
    return client.answer(number)


def refused(client: LinkClient, number: int, prompt: Sequence[int], sampling: Sampling, **more: Any) -> Failed:
    client.send(Submit(number, packed(prompt), sampling, **more))
    return client.wait_for(Failed, lambda failed: failed.id == number)


def test_hello_states_its_limits(worker: Path, model: Path) -> None:
    with LinkClient(worker / "w.sock") as client:
        hello = client.hello()
    assert (hello.engine, hello.device, hello.dtype, hello.folder) == ("vllm", "cpu", "float32", str(model))
    assert (hello.max_model_len, hello.vocab_size, hello.block_size) == (CONTEXT, VOCABULARY, BLOCK)
    assert hello.kv_tokens == 16 * 2**20 // (2 * 3 * 2 * 32 * 4 * BLOCK) * BLOCK
    assert (hello.eos_token_ids, hello.embedding_size) == ((2,), 0)
    assert set(hello.capabilities) == {"blocks", "grammar", "adapters"}


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_answers_and_logprobs_are_transformers(client: LinkClient, model: Path, prompt: list[int]) -> None:
    outputs = ask(client, 1, prompt, msgspec.structs.replace(GREEDY, top_logprobs=3))
    answer = tokens_of(outputs)
    assert answer == greedy(reference(model), prompt, 12)
    assert [output.finish for output in outputs] == [None] * 11 + ["length"]
    expected = logprobs(reference(model), [*prompt, *answer])
    for place, output in enumerate(outputs):
        row = expected[len(prompt) - 1 + place]
        assert output.logprobs == pytest.approx([float(row[answer[place]])], abs=2e-3)
        top = row.topk(3)
        assert output.top_tokens == [top.indices.tolist()]
        assert output.top_logprobs[0] == pytest.approx(top.values.tolist(), abs=2e-3)


def test_a_prompts_scores_are_transformers(client: LinkClient, model: Path) -> None:
    first = ask(client, 1, PROMPT, msgspec.structs.replace(GREEDY, prompt_logprobs=2))[0]
    expected = logprobs(reference(model), PROMPT)
    scores = first.prompt
    assert scores is not None
    assert scores.top == 2
    truth = [float(expected[place, token]) for place, token in enumerate(PROMPT[1:])]
    assert memoryview(scores.logprobs).cast("f").tolist() == pytest.approx(truth, abs=2e-3)
    ranks = [int((expected[place] > expected[place, token]).sum()) + 1 for place, token in enumerate(PROMPT[1:])]
    assert memoryview(scores.ranks).cast("i").tolist() == ranks
    assert memoryview(scores.top_tokens).cast("i").tolist() == expected[:-1].topk(2).indices.flatten().tolist()


def test_32_streams_at_a_time(client: LinkClient, model: Path) -> None:
    prompts = [list(range(20 + k, 50 + 3 * k)) for k in range(32)]
    for number, prompt in enumerate(prompts):
        client.submit(number, prompt, GREEDY)
    answers = [tokens_of(client.answer(number)) for number in range(32)]
    assert answers == [greedy(reference(model), prompt, 12) for prompt in prompts]
    steps = [message for message in client.seen if isinstance(message, Step)]
    assert max(len(step.outputs) for step in steps) == 32, "one frame carries a whole step"
    assert all(step.seconds > 0 for step in steps)
    load = client.idle()
    assert (load.kv_used, load.waiting_tokens, load.decoding, load.backlog) == (0, 0, 0, 0.0)
    assert load.prefill_rate > 0
    assert load.output_tokens_total >= 32 * 12


def test_an_abort_frees_what_the_request_held(client: LinkClient) -> None:
    for number in range(3):
        client.submit(number, [*PROMPT, number], LONG)
    client.wait_for(Load, lambda load: load.running == 3)
    client.abort(0, 1, 99)
    one = client.wait_for(Load, lambda load: load.running == 1 and load.waiting == 0 and load.kv_used < 3 * BLOCK)
    assert one.kv_used > 0, "vLLM's own figure"
    client.abort(2)
    assert client.idle().kv_used == 0
    before = len(client.seen)
    ask(client, 7, PROMPT, GREEDY)
    late = [message for message in client.seen[before:] if isinstance(message, Step)]
    assert {output.id for step in late for output in step.outputs} == {7}, "an aborted request is never heard of again"


def test_who_hangs_up_is_forgotten(worker: Path, client: LinkClient) -> None:
    with LinkClient(worker / "w.sock") as other:
        other.hello()
        other.submit(1, PROMPT, LONG)
        client.wait_for(Load, lambda load: load.running == 1)
    client.idle()


def test_a_prefix_is_cached_and_a_salt_keeps_it_apart(client: LinkClient) -> None:
    prompt = list(range(60, 160))
    salts = ["", "", "pepper", "pepper"]
    cached = [ask(client, number, prompt, GREEDY, salt=salt)[0].cached for number, salt in enumerate(salts)]
    assert cached == [0, 96, 0, 96]


def test_wishes(client: LinkClient, model: Path) -> None:
    plain = greedy(reference(model), PROMPT, 12)

    def answer(number: int, **wishes: Any) -> list[int]:
        return tokens_of(ask(client, number, PROMPT, msgspec.structs.replace(GREEDY, **wishes)))

    assert set(answer(3, allowed_token_ids=(40, 41))) <= {40, 41}
    assert plain[0] not in answer(4, logit_bias={plain[0]: -1000.0})
    word = (plain[0], plain[1])
    assert word not in list(pairwise(answer(5, bad_words=(word,))))
    assert answer(6, bad_words=(word,))[0] == plain[0]
    stop = next(token for token in plain if token != plain[0]) if len(set(plain)) > 1 else plain[0]
    ended = answer(7, stop_token_ids=(stop,))
    assert ended == plain[: plain.index(stop) + 1]
    assert client.outputs(7)[-1].finish == "stop"
    assert len(answer(8, stop_token_ids=(stop,), min_tokens=9)) >= 9
    assert len(set(answer(9, frequency_penalty=2.0, max_tokens=30))) > len(set(answer(10, max_tokens=30)))
    drawn = answer(11, temperature=1.5, seed=5)
    assert answer(12, temperature=1.5, seed=5) == drawn
    assert answer(13, temperature=1.5, seed=6) != drawn
    assert answer(14, temperature=1.0, top_k=1) == plain
    assert answer(15, temperature=1.0, top_p=0.0) == plain


def test_a_grammar_is_kept_to(client: LinkClient, model: Path) -> None:
    grammar = 'start: "fox" " " ("jumps" | "dog")'
    outputs = ask(client, 1, PROMPT, Sampling(max_tokens=30, temperature=1.0, grammar=grammar))
    assert outputs[-1].finish == "stop"
    assert tokens_of(outputs)[-1] == 2
    text = Tokenizer.from_file(str(model / "tokenizer.json")).decode(tokens_of(outputs))
    assert text in ("fox jumps", "fox dog")


@pytest.mark.parametrize(
    ("prompt", "sampling", "more", "code", "said"),
    [
        (PROMPT, Sampling(max_tokens=1, temperature=3.0), {}, "invalid_request", "temperature"),
        (PROMPT, Sampling(max_tokens=1, grammar="start: <<"), {}, "invalid_request", "rammar"),
        (PROMPT, GREEDY, {"embed": "mean"}, "invalid_request", "no embeddings"),
        (PROMPT, GREEDY, {"adapter": "unknown"}, "invalid_request", "no adapter 'unknown'"),
        ([VOCABULARY], GREEDY, {}, "invalid_request", "outside the vocabulary"),
        ([5] * CONTEXT, GREEDY, {}, "context_length_exceeded", str(CONTEXT)),
        (
            [*PROMPT, 9], Sampling(max_tokens=9, grammar="start: /a/"), {"answered": 1},
            "invalid_request", "go on with an answer that has to match a grammar",
        ),
    ],
)  # fmt: skip
def test_what_it_refuses(
    client: LinkClient, prompt: list[int], sampling: Sampling, more: dict[str, Any], code: str, said: str
) -> None:
    failed = refused(client, 1, prompt, sampling, **more)
    assert failed.code == code
    assert said in failed.message
    assert len(ask(client, 2, PROMPT, GREEDY)) == 12


def test_an_answer_that_another_worker_began_goes_on(client: LinkClient, model: Path) -> None:
    whole = greedy(reference(model), PROMPT, 12)
    rest = ask(client, 1, [*PROMPT, *whole[:5]], GREEDY, answered=5)
    assert tokens_of(rest) == whole[5:]
    assert rest[-1].finish == "length"


def test_events_are_those_of_a_native_worker(worker: Path, client: LinkClient) -> None:
    context = zmq.Context()
    with context.socket(zmq.SUB) as sub:
        sub.setsockopt(zmq.SUBSCRIBE, b"")
        sub.setsockopt(zmq.RCVTIMEO, 5000)
        sub.connect(f"ipc://{worker}/events")
        time.sleep(0.3)  # a subscription takes its time to arrive
        prompt = list(range(200, 300))
        ask(client, 1, prompt, GREEDY, salt="events")
        found: list[int] = []
        while len(found) < 3:
            _, _, payload = sub.recv_multipart()
            for event in msgspec.msgpack.decode(payload)[1]:
                assert (event["type"], event["block_size"]) == ("BlockStored", BLOCK)
                found += event["block_hashes"]
        expected = [short_hash(digest) for digest in chain_hashes(prompt, BLOCK, root_hash("", "events"))]
        assert found[:3] == expected
    context.term()


def test_a_gateway_can_follow_what_is_cached(client: LinkClient) -> None:
    def hashes(tokens: Sequence[int]) -> set[int]:
        return {short_hash(digest) for digest in chain_hashes(tokens, BLOCK, root_hash("", "follow"))}

    first, second = list(range(100, 170)), list(range(170, 270))
    ask(client, 1, first, GREEDY, salt="follow")
    client.idle()
    client.send(Follow())
    known = client.wait_for(Blocks)
    assert known.cleared
    assert hashes(first) <= set(memoryview(known.stored).cast("Q"))
    client.submit(2, PROMPT, GREEDY)
    client.send(Submit(3, packed(second), GREEDY, salt="follow"))
    news = client.wait_for(Blocks, lambda blocks: len(blocks.stored) >= 8 * 3)
    assert not news.cleared
    assert hashes(second) <= set(memoryview(news.stored).cast("Q"))


def test_adapters(client: LinkClient, model: Path, adapter: Path) -> None:
    client.send(LoadAdapter(1, "legal", str(adapter)))
    assert client.answer(1)[0].tokens == []
    adapted = _endless(LlamaForCausalLM.from_pretrained(model, dtype=torch.float32))
    tensors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, weight in _adapted(adapted):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            weight += SCALE * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
    expected = greedy(adapted, PROMPT, 12)
    assert expected != greedy(reference(model), PROMPT, 12)
    assert tokens_of(ask(client, 2, PROMPT, GREEDY, adapter="legal")) == expected
    assert tokens_of(ask(client, 3, PROMPT, GREEDY)) == greedy(reference(model), PROMPT, 12)
    client.send(LoadAdapter(4, "legal", str(adapter)))
    client.answer(4)
    client.send(LoadAdapter(5, "other", str(adapter / "nowhere")))
    assert "is no folder" in client.wait_for(Failed, lambda failed: failed.id == 5).message


def test_draining_finishes_what_was_submitted_and_refuses_what_comes(
    own: tuple["subprocess.Popen[str]", LinkClient], model: Path
) -> None:
    process, client = own
    client.hello()
    stages = [progress.stage for progress in progress_of(client)]
    assert "starting vLLM" in stages
    assert "warming up" in stages
    client.submit(1, PROMPT, msgspec.structs.replace(LONG, max_tokens=300))
    client.wait_for(Step)
    process.send_signal(signal.SIGTERM)
    client.wait_for(Load, lambda load: load.draining)
    assert refused(client, 2, PROMPT, GREEDY).code == "draining"
    assert tokens_of(client.answer(1)) == greedy(reference(model), PROMPT, 300)
    assert process.wait(20) == 0


def test_deaths(model: Path, own: tuple["subprocess.Popen[str]", LinkClient], tmp_path: Path) -> None:
    """A killed worker leaves no process of vLLM's behind; a killed engine takes its worker with it."""
    process, client = own
    client.hello()
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 2
    client.submit(1, PROMPT, LONG)
    client.wait_for(Step)
    process.kill()
    _, alive = psutil.wait_procs(below, timeout=10)
    assert alive == []
    path = tmp_path / "second.sock"
    with start(model, path) as second, LinkClient(path, second, timeout=240) as other:
        other.hello()
        other.submit(1, PROMPT, LONG)
        other.wait_for(Step)
        engine = next(one for one in psutil.Process(second.pid).children() if "EngineCore" in " ".join(one.cmdline()))
        engine.kill()
        with pytest.raises(ConnectionError):
            other.answer(1)
        assert second.wait(30) == 1
        assert second.stderr is not None
        assert "vLLM's engine has died" in second.stderr.read()
