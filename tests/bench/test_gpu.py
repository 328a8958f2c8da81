"""`python -m bench.gpu`: every case runs, on tiny shapes and a CPU; what fails, hangs or dies takes nothing with it."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as program
from bench.gpu.ceilings import Card
from bench.gpu.report import Case, Check, Figure, Record, Result, Skipped


@pytest.mark.slow
def test_everything_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert program.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert set(content["cases"].values()) == {"done", "skipped: float8 caches are for GPUs"}
    assert all(check["ok"] for check in content["checks"]) and len(content["checks"]) > 40
    figures = {figure["name"]: figure for figure in content["figures"]}
    assert all(len(figure["values"]) == 2 and min(figure["values"]) > 0 for figure in figures.values())
    for name in (
        "device copy",
        "matrix product, bf16",
        "decode attention, toy heads, 3 x 48",
        "prefill attention, other toy heads, 40",
        "sampling 300 logits, batch 3: masks",
        "linear, down 64 x 96, fp8, 4 rows",
        "rope, toy, 5 tokens",
        "step_inputs, 5 tokens",
        "LoRA, rank 16, 8 adapters, 4 rows: beside the products",
        "toy, one request at 18",
        "toy, nano bench",
        "toy, nano bench, no graphs",
        "toy, nano bench, SiLU x up unfused",
    ):
        assert name in figures
    out = capsys.readouterr().out
    assert out == (tmp_path / "gpu.md").read_text() + "\n"
    assert "no GPU: these figures mean nothing" in out and f"| {name} | " in out


def arguments(out: Path, *only: str) -> argparse.Namespace:
    return argparse.Namespace(only=only, models=["toy"], quick=True, device="cpu", out=out)


def use(cases: Iterable[Case], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(program, "every_case", lambda card, args: iter(cases))


def test_a_part_that_fails_does_not_keep_the_rest_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(error: Exception) -> Callable[[], Iterator[Result]]:
        def run() -> Iterator[Result]:
            yield Check(f"before {error}", 0.0, 0.0)
            assert f"before {error}" in Record.load(tmp_path).checks  # what there is is written at once
            raise error

        return run

    cases = [
        Case("ceilings", "ceilings", 1, lambda: [Figure("copy", "GB/s", [1.0])]),
        Case("kernels", "breaks", 1, raising(torch.OutOfMemoryError("no\nmemory"))),
        Case("checks", "not asked for", 1, raising(ValueError("never"))),
        Case("kernels", "has no use here", 1, raising(Skipped("too large"))),
        Case("kernels", "takes too long", 500, raising(ValueError("never"))),
        Case("engine", "works", 1, lambda: [Figure("speed", "tokens/s", [1.0])]),
    ]
    use(cases, monkeypatch)
    record = Record()
    assert program.measure(arguments(tmp_path, "kernels", "engine"), record, time.monotonic() + 100) == 0
    assert Record.load(tmp_path).cases == record.cases == {
        "ceilings": "done",
        "breaks": "failed: OutOfMemoryError: no",
        "has no use here": "skipped: too large",
        "takes too long": "not measured: out of time",
        "works": "done",
    }  # fmt: skip
    assert list(record.figures) == ["copy", "speed"]
    assert "bench: breaks: failed: OutOfMemoryError: no (" in capsys.readouterr().err
    # Another process goes on behind what has an outcome.
    use([Case("kernels", "breaks", 1, raising(ValueError("again"))), cases[-1]._replace(title="new")], monkeypatch)
    program.measure(arguments(tmp_path, "kernels", "engine"), record, time.monotonic() + 100)
    assert record.cases["breaks"] == "failed: OutOfMemoryError: no"
    assert record.cases["new"] == "done"


def test_the_status_says_whether_anything_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--quick", "--device", "cpu", "--out", str(tmp_path)]
    for error, status in ((0.5, 1), (0.1, 0)):
        use([Case("checks", "one", 1, lambda error=error: [Check("one", error, 0.2)])], monkeypatch)  # type: ignore[misc]
        assert program.main(words) == status
    use([Case("kernels", "one", 1, lambda: [1 / 0])], monkeypatch)  # type: ignore[list-item]
    assert program.main(words) == 1


# Does "a", dies at "b", hangs at "c", does "d": each process begins where the last one stopped.
CHILD = """
import json, os, sys, time
path = sys.argv[1] + "/gpu.json"
content = json.load(open(path))
for title in "abcd":
    if title in content["cases"]:
        continue
    for outcome in ("under way", "done"):
        content["cases"][title] = outcome
        with open(path, "w") as file:
            json.dump(content, file)
        if (title, outcome) == ("b", "under way"):
            os._exit(7)
        if (title, outcome) == ("c", "under way"):
            time.sleep(600)
"""


def test_a_process_that_dies_or_hangs_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_STALL", 3.0)
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    record = program.supervise(command, tmp_path, time.monotonic() + 100)
    assert record.cases["b"] == "failed: its process ended with status 7"
    assert record.cases["c"].startswith("failed: nothing came for ")
    assert (record.cases["a"], record.cases["d"]) == ("done", "done")
    assert Record.load(tmp_path).cases == record.cases


def test_a_process_that_gets_nowhere_is_not_started_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit(5)"]
    assert program.supervise(command, tmp_path, time.monotonic() + 100).cases == {}


def test_what_takes_longer_than_there_is_time_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_GRACE", 0.0)
    record = Record(cases={"long": "under way"})
    monkeypatch.setattr(Record, "write", lambda self, folder: None)
    (tmp_path / "gpu.json").write_text(json.dumps(record.document()))
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert program.supervise(command, tmp_path, time.monotonic()).cases == {"long": "not measured: out of time"}


def test_what_the_processes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def supervise(command: list[str], folder: Path, deadline: float) -> Record:
        seen.append((command, folder, deadline))
        return Record()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(program, "supervise", supervise)
    assert program.main(["--only", "checks", "--minutes", "2"]) == 0
    command, folder, deadline = seen[0]
    assert " ".join(command[1:]) == f"-m bench.gpu --only checks --minutes 2 --measure --out {program.RESULTS}"
    assert folder == program.RESULTS and program.RESULTS.is_dir()
    assert deadline - time.monotonic() == pytest.approx(120, abs=10)
    # As the second process understands it: the last of two options that are the same holds.
    args = program.build_parser().parse_args([*command[3:], "--minutes", "1.5"])
    assert (args.measure, args.out, args.minutes) == (True, program.RESULTS, 1.5)
    program.main(["--quick"])
    assert seen[1][1] != program.RESULTS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "torch finds no GPU here; to try the program without one: --quick --device cpu"),
        (["--device", "cpu"], "--device cpu needs --quick"),
        (["--only", "gone"], "invalid choice: 'gone'"),
        (["--models", "gone"], "invalid choice: 'gone'"),
    ],
)
def test_what_can_not_be_done_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        program.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_help_teaches() -> None:
    text = program.build_parser().format_help()
    for word in ("--only", "--models", "--quick", "--device", "--out", "--minutes", "importance", "examples:"):
        assert word in text
    assert "--measure" not in text


def test_the_most_important_comes_first_and_nothing_twice() -> None:
    """The cases of a real run, none of which does anything before it is run."""
    models = ["qwen3-0.6b", "qwen2.5-0.5b", "llama-3.1-8b"]
    args = argparse.Namespace(models=models)
    cases = list(program.every_case(Card(torch.device("cuda"), {}), args))
    titles = [case.title for case in cases]
    assert len(set(titles)) == len(titles)
    order = [
        "ceilings",
        "check of rms norm",
        "check of a small qwen3 beside transformers",
        "decode attention, Qwen3-0.6B heads, 1 x 1k",
        "decode attention, Llama-8B heads, 256 x 32k",
        "decode attention, Llama-8B heads, 64 x 8k, fp8 KV",
        "decode attention, Qwen2.5-0.5B heads, 256 x 8k",
        "qwen3-0.6b, one request",
        "qwen3-0.6b, nano bench",
        "qwen3-0.6b, nano bench, GPU busy",
        "llama-3.1-8b, one request",
        "llama-3.1-8b, 1,000 chats, GPU busy",
        "prefill attention, Llama-8B heads, 32k",
        "sampling, batch 256",
        "linear, gate-up 28672 x 4096, fp8",
        "LoRA",
        "qwen2.5-0.5b, nano bench",
        "qwen3-0.6b, nano bench, planned in turn",
        "qwen2.5-0.5b, nano bench, SiLU x up unfused",
        "llama-3.1-8b, one request, fp8",
    ]
    assert sorted(order, key=titles.index) == order
    assert sum(case.seconds for case in cases if case.part == "kernels") < 420


def test_a_process_that_can_not_use_the_gpu_any_more_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(device: torch.device) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    assert program._broken(gpu) and not program._broken(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert not program._broken(gpu)
    program._tidy(gpu)  # does nothing where no GPU was used
    monkeypatch.setattr(program, "_broken", lambda device: True)
    cases = [Case("kernels", name, 1, lambda: [1 / 0]) for name in "ab"]  # type: ignore[list-item]
    use(cases, monkeypatch)
    Record().write(tmp_path)
    words = ["--quick", "--device", "cpu", "--out", str(tmp_path), "--measure"]
    assert program.main(words) == program._BROKEN
    assert Record.load(tmp_path).cases == {"a": "failed: ZeroDivisionError: division by zero"}
    assert program.main(words) == program._BROKEN
    assert list(Record.load(tmp_path).cases) == ["a", "b"]
    assert program.main(words) == 0
