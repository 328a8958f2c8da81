import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.sides import ShortAnswer, main, measure
from bench.workloads import Workload

WORKLOAD = Workload(requests=3, shared=2, own=4, output=16)


class Recorder:
    """Answers with ``output`` tokens, or with ``length`` where that is given."""

    def __init__(self, length: int | None = None) -> None:
        self.versions = {"recorder": "1"}
        self.length = length
        self.calls: list[tuple[list[tuple[int, ...]], int]] = []

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> list[int]:
        self.calls.append(([tuple(prompt) for prompt in prompts], output))
        return [self.length or output] * len(prompts)


def test_what_is_timed_was_never_seen_in_the_warm_up() -> None:
    side = Recorder()
    timing = measure(side, "x", WORKLOAD, vocab_size=500, seed=7)
    (warm, warm_output), (timed, output) = side.calls
    assert (warm_output, output) == (8, 16)
    assert not set(warm) & set(timed)
    assert timing.output_tokens == 48
    assert timing.seconds > 0


def test_rounds_share_no_prompt() -> None:
    side = Recorder()
    for seed in range(3):
        measure(side, "x", WORKLOAD, vocab_size=500, seed=seed)
    prompts = [prompt for prompts, _ in side.calls for prompt in prompts]
    assert len(set(prompts)) == len(prompts)


def test_a_short_answer_is_refused() -> None:
    with pytest.raises(ShortAnswer, match="asked for 16 tokens each and got"):
        measure(Recorder(length=15), "x", WORKLOAD, vocab_size=500, seed=0)


def test_main_writes_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    out = tmp_path / "out.json"
    what = ["--model", str(tmp_path), "--variant", "v", "--workloads", "a", "b"]
    options = [*what, "--seed", "1", "--short", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["side", *options])
    main(lambda folder, variant: Recorder())
    written = json.loads(out.read_text())
    assert written["versions"] == {"recorder": "1"}
    assert [timing["workload"] for timing in written["timings"]] == ["a", "b"]
