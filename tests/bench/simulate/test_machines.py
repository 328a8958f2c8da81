"""`bench.simulate.machines`: derived figures are the measured ones, and tokens cost what the bends say."""

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
    ((knee, beyond),) = machine.bends
    assert machine.seconds(Work(int(knee), 0, 0, 0)) < 1.4 * machine.seconds(Work(1, 0, 0, 0))
    more = machine.seconds(Work(9000, 0, 0, 0)) - machine.seconds(Work(1000, 0, 0, 0))
    assert more == pytest.approx(8000 * beyond) and beyond > machine.token


def test_tokens_cost_what_the_bends_say() -> None:
    machine = Machine(
        name="x", step=1.0, token=0.5, context=0, pair=0, request=0, bends=((4, 0.25), (10, 0), (20, 2)), kv_tokens=1
    )
    expected = {1: 1.5, 4: 3.0, 6: 3.5, 10: 4.5, 15: 4.5, 20: 4.5, 21: 6.5, 30: 24.5}
    assert {tokens: machine.seconds(Work(tokens, 0, 0, 0)) for tokens in expected} == expected


@pytest.mark.parametrize(
    ("bends", "message"),
    [
        (((4, -1e-6),), "-1e-06 from 4 tokens on"),
        (((4, 1.0), (4, 2.0)), "one at 4 tokens after 4"),
        (((0, 1.0),), "one at 0 tokens after 0"),
    ],
)
def test_bends_that_can_not_be_are_refused(bends: tuple[tuple[float, float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Machine(name="x", step=1, token=0, context=0, pair=0, request=0, bends=bends, kv_tokens=1)


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
    save(find("a100/qwen3-0.6b"), tmp_path / "old.json")
    old = (tmp_path / "old.json").read_text().replace('"jitter"', '"knee": 64.0, "jitter"')
    (tmp_path / "old.json").write_text(old)
    with pytest.raises(ValueError, match="knee"):
        find(str(tmp_path / "old.json"))
    with pytest.raises(ValueError, match="token -1"):
        Machine(name="x", step=1, token=-1, context=0, pair=0, request=0, kv_tokens=1)
    with pytest.raises(ValueError, match="some time"):
        Machine(name="x", step=0, token=0, context=0, pair=0, request=0, kv_tokens=1)
    with pytest.raises(ValueError, match="kv_tokens 0"):
        Machine(name="x", step=1, token=0, context=0, pair=0, request=0, kv_tokens=0)
