from pathlib import Path

import pytest
import torch

from engine import memory
from engine.memory import KvBudget, available_memory, kv_budget


@pytest.fixture
def free_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 4 * 2**30)


@pytest.fixture
def gpu_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 GiB, of which 20 are in use."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * 2**30, 80 * 2**30))


def budget(**changes: float | str | None) -> KvBudget:
    arguments: dict[str, float | str | None] = {
        "device": "cpu",
        "bytes_per_block": 2**20,
        "block_size": 16,
        "longest": 2048,
        "max_model_len": None,
        "max_running": 64,
        "asked": None,
    }
    return kv_budget(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.usefixtures("free_gib")
def test_half_of_what_is_free_by_default() -> None:
    assert budget() == KvBudget(2048, 2048 * 2**20, "50% of the 4.0 GiB free", 2048)


@pytest.mark.usefixtures("free_gib")
def test_no_more_than_the_running_requests_can_use() -> None:
    assert budget(max_running=3).blocks == 3 * 128


@pytest.mark.usefixtures("free_gib")
def test_a_context_that_was_not_asked_for_shrinks_to_fit() -> None:
    fitted = budget(longest=131_072)
    assert fitted.max_model_len == 2048 * 16


@pytest.mark.usefixtures("free_gib")
def test_a_context_that_was_asked_for_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="100000 tokens, which takes 6250 MiB: raise --kv-memory"):
        budget(longest=131_072, max_model_len=100_000)


def test_what_was_asked_for_is_taken() -> None:
    assert budget(asked=200 * 2**20 + 5).blocks == 200


def test_a_pool_too_small_for_a_useful_context_is_refused() -> None:
    with pytest.raises(ValueError, match="lower --max-model-len"):
        budget(asked=10 * 2**20)


def test_available_memory_heeds_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = available_memory()
    assert host > 2**20
    limits = {"/sys/fs/cgroup/memory.max": 3 * 2**20, "/sys/fs/cgroup/memory.current": 2**20}
    monkeypatch.setattr(memory, "_read_int", limits.get)
    assert available_memory() == 2 * 2**20


@pytest.mark.usefixtures("gpu_gib")
def test_on_a_gpu_the_worker_as_a_whole_takes_its_share() -> None:
    found = budget(device="cuda", step_bytes=3 * 2**30, max_running=10_000)
    assert found.blocks == (72 - 20 - 3) * 1024
    assert found.reason == "90% of the GPU's 80.0 GiB, less 20.0 in use and 3.0 for the largest step"
    assert budget(device="cuda", gpu_share=0.5, max_running=10_000).blocks == (40 - 20) * 1024


@pytest.mark.usefixtures("gpu_gib")
def test_a_gpu_that_is_full_already() -> None:
    with pytest.raises(ValueError, match=r"a KV cache of 0 MiB \(20% of the GPU's .* lower --max-model-len"):
        budget(device="cuda", gpu_share=0.2)
