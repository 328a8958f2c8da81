"""Do the Triton kernels, put together as on a GPU, answer as transformers does?

Here they are interpreted, two thousand times slower than torch, so that model and answers are tiny. On a GPU the tests
of `tests.engine` run with the real ones.
"""

import os
from pathlib import Path

import pytest
import torch

from engine import device_runner
from engine.config import ModelConfig
from engine.device_runner import DeviceLimits, DeviceRunner
from engine.loader import load_model
from kernels import device, kv_cache
from scheduler.batch import SchedulerConfig
from tests.engine.driving import job, run
from tests.engine.families import prompt, save
from tests.engine.test_sketch import check_low_margins, check_sketch

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels aren't interpreted here")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's providers run on CPU tensors, on a device of two multiprocessors, over a cache as a GPU has it."""
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(device, "multiprocessors", lambda place: 2)
    monkeypatch.setattr(device_runner, "allocate", kv_cache.token_major)


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", ["qwen3", "mistral-window"])
def test_greedy_tokens_are_those_of_generate(name: str, tmp_path: Path) -> None:
    pair = save(name, tmp_path)
    model = load_model(ModelConfig.load(pair.folder), torch.float32, torch.device("cpu"))
    runner = DeviceRunner(model, 40, 4, DeviceLimits(max_running=2, max_batch_tokens=40, max_model_len=60))
    prompts = [prompt(1, 9), prompt(2, 3)]
    # The second comes while the first is under way: decodes and prefill share a step.
    jobs = [job(uid, tokens, 4, arrival=2.0 * uid, sketched=True) for uid, tokens in enumerate(prompts)]
    config = SchedulerConfig(max_running=2, max_batch_tokens=40, min_prefill_tokens=2)
    result = run(runner, jobs, config=config)
    for one, tokens in zip(jobs, prompts, strict=True):
        assert result.tokens[one.uid] == pair.greedy(tokens, 4)
        check_sketch(one, pair, tokens)
        check_low_margins(result.low_margins[one.uid], pair, tokens, result.tokens[one.uid])
