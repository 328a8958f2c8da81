"""What can be known of the vLLM worker without a vLLM: its translations, its counting, its refusal to start."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.link import Sampling
from engine.options import VLLM_START, WorkerOptions
from engine.vllm.events import Translator
from engine.vllm.load import Meter, Tally
from engine.vllm.outputs import Unanswered, output_of, scores_of
from engine.vllm.sampling import fields, plain_grammar
from engine.vllm.start import end_of_sequence, engine_arguments, sampling_defaults
from scheduler.blocks import AllBlocksCleared, BlockRemoved, BlockStored, chain_hashes, root_hash, short_hash

SIZE = 4


def stored(hashes: list[int], parent: int | None, tokens: list[int], **more: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens,
        "block_size": SIZE, "lora_id": None, "medium": "GPU", "lora_name": None, "group_idx": 0, **more,
    }  # fmt: skip


def ours(tokens: list[int], adapter: str = "", salt: str = "") -> list[int]:
    return [short_hash(digest) for digest in chain_hashes(tokens, SIZE, root_hash(adapter, salt))]


def test_blocks_get_the_hashes_that_the_native_engine_gives_them() -> None:
    translator, tokens = Translator(), list(range(12))
    first = translator.translate(stored([901, 902], None, tokens[:8]))
    second = translator.translate(stored([903], 902, tokens[8:]))
    hashes = ours(tokens)
    assert first == BlockStored(hashes[:2], None, tokens[:8], SIZE, "")
    assert second == BlockStored(hashes[2:], hashes[1], tokens[8:], SIZE, "")
    assert translator.translate(
        {"type": "BlockRemoved", "block_hashes": [903, 5], "medium": "GPU", "group_idx": 0}
    ) == (BlockRemoved(hashes[2:]))
    assert translator.cached() == hashes[:2]
    assert len(translator) == 2
    assert translator.translate(stored([904], 903, tokens[8:])) is None, "its beginning is forgotten"
    assert translator.translate({"type": "AllBlocksCleared"}) == AllBlocksCleared()
    assert len(translator) == 0


def test_a_block_is_there_until_its_last_copy_has_gone() -> None:
    translator = Translator()
    for _ in range(3):
        translator.translate(stored([1], None, [5, 6, 7, 8]))
    gone = {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 0}
    assert [translator.translate(gone) for _ in range(4)] == [None, None, BlockRemoved(ours([5, 6, 7, 8])), None]
    assert translator.cached() == []


@pytest.mark.parametrize(
    ("more", "adapter", "salt"),
    [
        ({"extra_keys": [("pepper",)]}, "", "pepper"),
        ({"lora_name": "legal", "extra_keys": [("legal",)]}, "legal", ""),
        ({"lora_name": "legal", "extra_keys": [("legal", "pepper")]}, "legal", "pepper"),
        ({"extra_keys": [None]}, "", ""),
    ],
)
def test_adapters_and_salts_keep_blocks_apart(more: dict[str, Any], adapter: str, salt: str) -> None:
    event = Translator().translate(stored([1], None, [5, 6, 7, 8], **more))
    assert event == BlockStored(ours([5, 6, 7, 8], adapter, salt), None, [5, 6, 7, 8], SIZE, adapter)


def test_arrays_say_the_same_as_maps() -> None:
    event = ["BlockStored", [1], None, [5, 6, 7, 8], SIZE, None, "GPU", None]
    assert Translator().translate(event) == BlockStored(ours([5, 6, 7, 8]), None, [5, 6, 7, 8], SIZE, "")
    assert Translator().translate(["AllBlocksCleared"]) == AllBlocksCleared()


def test_what_no_index_could_use_is_left_out() -> None:
    translator = Translator()
    assert translator.translate(stored([1], None, [1, 2, 3, 4], medium="CPU")) is None
    translator.translate(stored([1], None, [1, 2, 3, 4]))
    assert translator.translate(stored([1], None, [1, 2, 3, 4], group_idx=1)) is None
    assert translator.translate({"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 1}) is None
    assert len(translator) == 1


@pytest.mark.parametrize("event", [7, {"type": "Gossip"}, ["Gossip"], [], {}])
def test_what_is_no_event(event: object) -> None:
    with pytest.raises(ValueError, match="no KV event"):
        Translator().translate(event)


def step(running: int, *, prefill: int = 0, decodes: int = 0, seconds: float = 0.01, usage: float = 0.5) -> Any:
    details = SimpleNamespace(
        is_dummy=False, elapsed_ms=seconds * 1000, num_ctx_tokens=prefill, num_generation_requests=decodes
    )
    return SimpleNamespace(num_running_reqs=running, kv_cache_usage=usage, iteration_details=details)


def test_load_counts_what_waits_runs_and_is_owed() -> None:
    meter = Meter(kv_total=1000, tpot=0.05)
    meter.begin(1, Tally(100))
    meter.begin(2, Tally(60))
    meter.begin(3, Tally(500, background=True))
    before = meter.load()
    assert (before.waiting, before.running, before.waiting_tokens, before.kv_used) == (3, 0, 160, 0)
    assert before.backlog > 0
    meter.record(step(2, prefill=120), SimpleNamespace(num_preempted_reqs=2))
    meter.drew(1, 1, 32)
    after = meter.load()
    assert (after.waiting, after.running, after.waiting_tokens, after.kv_used) == (1, 2, 40, 500)
    assert (after.decoding, after.decode_context) == (1, 101)
    assert (after.prompt_tokens_total, after.cached_tokens_total, after.output_tokens_total) == (100, 32, 1)
    assert (after.steps_total, after.preemptions_total) == (1, 2)
    assert after.backlog < before.backlog


def test_an_abort_that_leaves_nothing_shows_although_vllm_is_silent() -> None:
    meter = Meter(kv_total=1000, tpot=0.05)
    meter.begin(1, Tally(10))
    meter.record(step(1, prefill=10), None)
    meter.end(1)
    meter.end(1)
    load = meter.load()
    assert (load.waiting, load.running, load.kv_used, load.waiting_tokens) == (0, 0, 0, 0)


def test_it_learns_how_long_steps_take() -> None:
    meter = Meter(kv_total=1000, tpot=0.05)
    for uid in range(300):
        meter.begin(uid, Tally(100 + uid))
        meter.record(step(1, prefill=100 + uid, seconds=0.001 * (100 + uid)), None)
        meter.drew(uid, 1, 0)
        meter.end(uid)
    assert meter.load().prefill_rate == pytest.approx(1000, rel=0.1)


def test_every_wish_has_its_field() -> None:
    wish = Sampling(
        max_tokens=9, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=3, min_tokens=2, stop_token_ids=(7, 900),
        presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.5, logit_bias={4: -1.0},
        allowed_token_ids=(1, 2), top_logprobs=3, prompt_logprobs=0,
    )  # fmt: skip
    assert fields(wish, (), (2,), 331) == {
        "max_tokens": 9, "min_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3,
        "stop_token_ids": [7, 2], "ignore_eos": True, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "repetition_penalty": 1.5, "logit_bias": {4: -1.0}, "allowed_token_ids": [1, 2], "logprobs": 3,
        "prompt_logprobs": 0,
    }  # fmt: skip


def test_the_least_top_p_is_greedy_and_a_grammar_ends_with_the_model() -> None:
    assert fields(Sampling(max_tokens=1, top_p=0.0), (), (), 331)["temperature"] == 0.0
    assert fields(Sampling(max_tokens=1, ignore_eos=True), (), (2,), 331)["stop_token_ids"] == []
    assert fields(Sampling(max_tokens=1, ignore_eos=True, grammar="start: A"), (), (2,), 331)["stop_token_ids"] == [2]


def test_an_answer_that_was_begun_elsewhere_goes_on() -> None:
    wish = Sampling(
        max_tokens=10, min_tokens=4, seed=7, frequency_penalty=0.5, presence_penalty=0.25, logit_bias={5: 1.0},
        prompt_logprobs=1,
    )  # fmt: skip
    made = fields(wish, (5, 6, 5), (), 331)
    assert (made["max_tokens"], made["min_tokens"], made["seed"], made["prompt_logprobs"]) == (7, 1, 10, None)
    assert made["logit_bias"] == {5: 1.0 - 0.25 - 1.0, 6: -0.75}


@pytest.mark.parametrize(
    ("grammar", "plain"),
    [
        ("start: A\nA: /x/", "start: A\nA: /x/"),
        ('{"grammars": [{"lark_grammar": "start: A"}]}', "start: A"),
        (
            '{"grammars": [{"lark_grammar": "%llguidance {}\\nstart: @grammar\\n"}, '
            '{"name": "grammar", "lark_grammar": "start: B"}]}',
            "start: B",
        ),
    ],
)
def test_grammars_that_vllm_takes(grammar: str, plain: str) -> None:
    assert plain_grammar(grammar) == plain


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ('{"grammars": [{"lark_grammar": "start: @a @b"}, {"name": "a", "lark_grammar": ""}]}', "can't combine"),
        ('{"grammars": [{"json_schema": {}}]}', "neither Lark nor"),
        ("{", "neither Lark nor"),
    ],
)
def test_grammars_that_it_does_not(grammar: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        plain_grammar(grammar)


def request_output(tokens: list[int], *, finished: bool = False, reason: str | None = None, prompt: Any = None) -> Any:
    flat = SimpleNamespace(
        start_indices=[0, 3][: len(tokens)], end_indices=[3, 6][: len(tokens)], token_ids=[7, 7, 8, 9, 1, 2],
        logprobs=[-1.0, -1.0, -2.0, -3.0, -4.0, -5.0],
    )  # fmt: skip
    return SimpleNamespace(
        outputs=[SimpleNamespace(token_ids=tokens, logprobs=flat, finish_reason=reason)], finished=finished,
        num_cached_tokens=32, metrics=SimpleNamespace(queued_ts=1.0, scheduled_ts=1.5), prompt_logprobs=prompt,
    )  # fmt: skip


def test_outputs() -> None:
    first = output_of(5, request_output([7, 9]), top=2, first=True)
    assert (first.id, first.tokens, first.logprobs, first.entropies, first.finish) == (
        5,
        [7, 9],
        [-1.0, -3.0],
        [],
        None,
    )
    assert (first.top_tokens, first.top_logprobs) == ([[7, 8], [1, 2]], [[-1.0, -2.0], [-4.0, -5.0]])
    assert (first.cached, first.queued) == (32, 0.5)
    last = output_of(5, request_output([7], finished=True, reason="length"), top=0, first=False)
    assert (last.finish, last.cached, last.queued, last.top_tokens) == ("length", 0, 0.0, [])
    with pytest.raises(Unanswered, match="error"):
        output_of(5, request_output([7], finished=True, reason="error"), top=0, first=False)


def test_scores_of_a_prompt() -> None:
    scores = scores_of(
        SimpleNamespace(
            start_indices=[0, 0, 2],
            end_indices=[0, 2, 4],
            token_ids=[5, 6, 7, 8],
            logprobs=[-1.0, -0.5, -2.0, -0.25],
            ranks=[9, 1, 4, 1],
        )
    )
    assert scores.top == 1
    assert memoryview(scores.logprobs).cast("f").tolist() == [-1.0, -2.0]
    assert memoryview(scores.ranks).cast("i").tolist() == [9, 4]
    assert memoryview(scores.top_tokens).cast("i").tolist() == [6, 8]
    assert memoryview(scores.top_logprobs).cast("f").tolist() == [-0.5, -0.25]


def options(**more: Any) -> WorkerOptions:
    return WorkerOptions(listen="unix:/w", **more)


def test_options_become_vllms(tmp_path: Path) -> None:
    made = engine_arguments(options(kv_memory=2**26, max_running=7, adapters=2), tmp_path, "ipc:///e", on_cpu=True)
    assert (made["dtype"], made["kv_cache_memory_bytes"], made["max_num_seqs"]) == ("bfloat16", 2**26, 7)
    assert (made["skip_tokenizer_init"], made["max_model_len"], "block_size" in made) == (True, -1, False)
    assert (made["enable_lora"], made["max_loras"]) == (True, 2)
    assert made["kv_events_config"]["endpoint"] == "ipc:///e"
    more = engine_arguments(options(vllm_args='{"dtype": "half", "seed": 4}'), tmp_path, "ipc:///e", on_cpu=False)
    assert (more["dtype"], more["seed"], "kv_cache_memory_bytes" in more) == ("half", 4, False)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"quantization": "int8"}, "--quantization int8"),
        ({"device": "cuda"}, "--device cuda"),
        ({"vllm_args": "{"}, "is no JSON"),
        ({"vllm_args": "[]"}, "expected an object"),
    ],
)
def test_options_that_vllm_has_no_use_for(more: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        engine_arguments(options(**more), tmp_path, "ipc:///e", on_cpu=True)


def test_what_a_folder_says_of_ends_and_defaults(tmp_path: Path) -> None:
    assert end_of_sequence(tmp_path, SimpleNamespace(eos_token_id=2)) == (2,)
    assert sampling_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 9], "top_p": 0.5, "do_sample": false}')
    assert end_of_sequence(tmp_path, SimpleNamespace(eos_token_id=None)) == (2, 9)
    assert end_of_sequence(tmp_path, SimpleNamespace(eos_token_id=7)) == (7, 2, 9)
    assert sampling_defaults(tmp_path) == {"top_p": 0.5, "temperature": 0.0}


def python_without_vllm(tmp_path: Path, *, through_penstock: bool) -> subprocess.CompletedProcess[str]:
    words = ["--listen", f"unix:{tmp_path}/w.sock", "--engine", "vllm"]
    start = ["-m", "penstock", "worker"] if through_penstock else [*VLLM_START]
    return subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("through_penstock", [False, True])
def test_where_vllm_is_not_installed(tmp_path: Path, through_penstock: bool) -> None:
    ended = python_without_vllm(tmp_path, through_penstock=through_penstock)
    assert ended.returncode == 1
    assert f"{sys.executable} has no vLLM" in ended.stderr
    assert "--vllm-python" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_python_that_is_none(tmp_path: Path) -> None:
    words = ["worker", "--listen", f"unix:{tmp_path}/w", "--engine", "vllm", "--vllm-python", str(tmp_path / "python")]
    command = [sys.executable, "-m", "penstock", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert f"--vllm-python {tmp_path}/python: No such file or directory" in ended.stderr
