import logging
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from engine.config import ModelFault
from engine.engine import Engine
from engine.job import Job
from engine.link import Sampling
from engine.options import WorkerOptions
from tests.engine.adapters import adapt
from tests.models import CONTEXT, llama_folder


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("engine") / "a-llama")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.build(options(folder, threads=1), silent)


def options(folder: Path | str, **changes: object) -> WorkerOptions:
    given: dict[str, object] = {"listen": "unix:/nowhere", "model": str(folder), "kv_memory": 4 << 20}
    return WorkerOptions(**(given | changes))  # type: ignore[arg-type]


def job(uid: int, **changes: object) -> Job:
    given: dict[str, object] = {
        "uid": uid, "tokens": [5, 6, 7], "max_tokens": 4, "max_len": CONTEXT, "ttft": 1.0, "tpot": 0.05, "seed": 0,
        "sampling": Sampling(max_tokens=4, temperature=0.0),
    }  # fmt: skip
    return Job(**(given | changes))  # type: ignore[arg-type]


def test_it_is_named_after_its_folder_or_as_told(engine: Engine, folder: Path) -> None:
    assert engine.name == "a-llama"
    assert Engine.build(options(folder, name="other"), silent).name == "other"


def test_with_an_adapter_it_is_named_after_that(folder: Path, tmp_path: Path) -> None:
    adapted = adapt(LlamaForCausalLM.from_pretrained(folder), tmp_path / "lawyer")
    assert Engine.build(options(folder, adapter=str(adapted.folder)), silent).name == "lawyer"
    with pytest.raises(ModelFault, match="is no adapter in PEFT's format"):
        Engine.build(options(folder, adapter=str(folder)), silent)
    with pytest.raises(ModelFault, match="nowhere is no folder"):
        Engine.build(options(folder, adapter="./nowhere"), silent)


def test_nothing_to_do_is_no_step(engine: Engine) -> None:
    assert not engine.busy
    assert engine.step() is None


def test_steps_draw_until_the_end(engine: Engine) -> None:
    engine.add(job(1))
    engine.add(job(2, max_tokens=2))
    drawn: dict[int, list[int]] = {1: [], 2: []}
    while engine.busy:
        outcome = engine.step()
        assert outcome is not None
        assert outcome.seconds > 0
        for made in outcome.drawn:
            assert made.logprob < 0 < made.entropy
            drawn[made.job.uid].append(made.token)
    assert (len(drawn[1]), len(drawn[2])) == (4, 2)
    assert drawn[2] == drawn[1][:2]
    assert engine.load(0.0).kv_used == 0


def test_a_jobs_own_stops_join_the_models_unless_it_ignores_them(engine: Engine) -> None:
    assert engine.stop_ids(Sampling(max_tokens=1)) == {2}
    assert engine.stop_ids(Sampling(max_tokens=1, stop_token_ids=(9,))) == {2, 9}
    assert engine.stop_ids(Sampling(max_tokens=1, stop_token_ids=(9,), ignore_eos=True)) == {9}
    assert engine.stop_ids(Sampling(max_tokens=1, stop_token_ids=(-1, 10**6))) == {2}


def test_a_context_beyond_the_models_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"--max-model-len {CONTEXT + 1}: the model was made for at most {CONTEXT}"):
        Engine.build(options(folder, max_model_len=CONTEXT + 1), silent)


def test_a_shorter_context_is_kept(folder: Path) -> None:
    assert Engine.build(options(folder, max_model_len=100), silent).max_model_len == 100


def test_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="--device cuda"):
        Engine.build(options(folder, device="cuda"), silent)


def test_a_rounding_that_the_device_does_not_have_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="--quantization fp8 is for GPUs"):
        Engine.build(options(folder, quantization="fp8"), silent)


def test_no_model_means_the_demo_model(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        demo = Engine.build(options("", model=None), silent)
    assert demo.name == "penstock-demo"
    assert "KV cache: 4 MiB" in caplog.text


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFault, match=r"config\.json"):
        Engine.build(options(tmp_path), silent)


def test_a_grammar_ends_with_the_models_end_whatever_is_ignored(engine: Engine) -> None:
    assert engine.stop_ids(Sampling(max_tokens=1, ignore_eos=True, grammar="start: /x/")) == {2}


def test_who_can_draw_nothing_is_told_and_the_others_go_on(engine: Engine) -> None:
    sampling = Sampling(max_tokens=4, allowed_token_ids=(9,), bad_words=((9, 9),))
    stuck = job(1, sampling=sampling, constraint=engine.constraint(sampling))
    engine.add(stuck)
    engine.add(job(2))
    drawn: list[int] = []
    reasons: list[str] = []
    while engine.busy:
        outcome = engine.step()
        assert outcome is not None
        drawn += [made.job.uid for made in outcome.drawn]
        reasons += [reason for ended, reason in outcome.stuck if ended is stuck]
    assert sorted(drawn) == [1, 2, 2, 2, 2]
    assert len(reasons) == 1
    assert reasons[0].startswith("after 1 tokens, there is none left that the request may draw")
    assert engine.load(0.0).kv_used == 0


def test_embeddings_come_beside_the_tokens_of_others(engine: Engine) -> None:
    ours = job(1, embed="last", max_tokens=1, max_len=4)
    engine.add(ours)
    engine.add(job(2))
    outcome = engine.step()
    assert outcome is not None
    assert ([made.job.uid for made in outcome.drawn], outcome.embedded) == ([2], [ours])
    assert ours.pooler is not None and len(ours.pooler.result()) == 4 * engine.config.hidden_size
    engine.abort(2)


def test_a_cache_of_float8_is_for_gpus(folder: Path) -> None:
    with pytest.raises(ValueError, match="--kv-dtype fp8 is for GPUs: leave it out"):
        Engine.build(options(folder, device="cpu", kv_dtype="fp8"), silent)
