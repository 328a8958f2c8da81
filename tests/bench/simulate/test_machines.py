"""`bench.simulate.machines`: derived figures are the measured ones, and a knee is where it should be."""

from pathlib import Path

import pytest

from bench.simulate.machines import Machine, find, names, save
from scheduler.steptime import Work


def test_an_h200_with_llama_8b_is_what_was_measured() -> None:
    """The stated figures: 0.5 ms + max(3.7 ms, 29.1 us a prefill token) + 33 ns a token of decode context."""
    machine = find("h200/llama-3.1-8b")
    assert machine.seconds(Work(1, 0, 0, 0)) == pytest.approx(0.5e-3 + 3.7e-3, rel=0.02)
    assert machine.seconds(Work(8192, 0, 0, 0)) == pytest.approx(0.5e-3 + 8192 * 29.1e-6, rel=0.02)
    assert machine.context == pytest.approx(33e-9, rel=0.02)
    assert 700_000 < machine.kv_tokens < 900_000
    assert machine.ahead


def test_a_qwen_3_token_takes_114688_bytes() -> None:
    assert find("h200/qwen3-0.6b").context * 4.3e12 * 0.92 == pytest.approx(114_688)


@pytest.mark.parametrize("name", names())
def test_every_named_machine_is_derived(name: str) -> None:
    machine = find(name)
    assert machine.seconds(Work(int(machine.knee), 0, 0, 0)) < 1.4 * machine.seconds(Work(1, 0, 0, 0))
    more = machine.seconds(Work(9000, 0, 0, 0)) - machine.seconds(Work(1000, 0, 0, 0))
    assert more == pytest.approx(8000 * (machine.token + machine.beyond))


def test_a_slower_gpu_is_slower() -> None:
    step = Work(2000, 40_000, 300_000, 30)
    times = [find(f"{gpu}/llama-3.1-8b").seconds(step) for gpu in ("h200", "h100", "a100")]
    assert times == sorted(times) and times[0] < times[2] / 2


def test_a_machine_is_kept_in_a_file(tmp_path: Path) -> None:
    machine = find("a100/qwen3-0.6b")
    save(machine, tmp_path / "mine.json")
    assert find(str(tmp_path / "mine.json")) == machine


def test_what_is_no_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known machines: h200/"):
        find("h300/llama")
    (tmp_path / "bad.json").write_text('{"name": "x", "step": -1, "kv_tokens": 1}')
    with pytest.raises(ValueError, match="no machine"):
        find(str(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match="token -1"):
        Machine(name="x", step=1, token=-1, context=0, pair=0, request=0, kv_tokens=1)
    with pytest.raises(ValueError, match="some time"):
        Machine(name="x", step=0, token=0, context=0, pair=0, request=0, kv_tokens=1)
    with pytest.raises(ValueError, match="kv_tokens 0"):
        Machine(name="x", step=1, token=0, context=0, pair=0, request=0, kv_tokens=0)
