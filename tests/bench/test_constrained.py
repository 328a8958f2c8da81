"""`bench.constrained`: both sides do the same work, and the table says what the difference is."""

from pathlib import Path

from bench.constrained import Bench, Report, Round, markdown
from bench.machine import describe
from bench.workloads import Workload
from tests.models import llama_folder


def test_both_sides_answer_in_full(tmp_path: Path) -> None:
    bench = Bench(llama_folder(tmp_path, tokenizer=True), Workload(requests=4, shared=0, own=8, output=12))
    for side in ("none", "half"):
        made = bench.run(side, seed=1)
        assert (made.side, made.output_tokens) == (side, 48)
        assert min(made.seconds, made.cpu) > 0


def test_the_table_compares_medians() -> None:
    rounds = [Round("none", 1000, seconds, 2.0, 0.010, 0.1) for seconds in (1.0, 5.0, 0.9)]
    rounds += [Round("half", 1000, seconds, 2.1, 0.011, 0.2) for seconds in (1.25, 1.2, 7.0)]
    table = markdown(Report("2026-01-01T00:00+00:00", describe(), rounds))
    assert "| none | 1,000 | 10.00 | 2,000 | 10% |" in table
    assert "| half | 800 | 11.00 | 2,100 | 20% |" in table
    assert "20.0% fewer output tokens/s, decode steps 10.0% longer, 5.0% more CPU time a token." in table
