from pathlib import Path

import pytest

from engine import memory
from engine.memory import KvBudget, available_memory, kv_budget


@pytest.fixture
def free_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 4 * 2**30)


def budget(**changes: int | str | None) -> KvBudget:
    arguments: dict[str, int | str | None] = {
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
    host = available_memory("cpu")
    assert host > 2**20
    limits = {"/sys/fs/cgroup/memory.max": 3 * 2**20, "/sys/fs/cgroup/memory.current": 2**20}
    monkeypatch.setattr(memory, "_read_int", limits.get)
    assert available_memory("cpu") == 2 * 2**20
