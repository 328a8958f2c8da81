from pathlib import Path

import numpy as np
import pytest

from bench.load.columns import RunFileError, columns_of, read_records, read_run
from bench.load.records import Record
from bench.load.summary import Slo, summarize
from tests.bench.load.made import queue, run_info, write_run


def test_columns_count_what_the_summary_counts() -> None:
    records = [
        *queue(300, failing=0.1, chunk=3),
        Record(index=1000, at=1.0, outcome="timeout", end=61.0),
        Record(index=1001, at=2.0, outcome="timeout", first=2.5, last=3.0, end=62.0, gaps=[0.5], output_tokens=2),
        Record(index=1002, at=2.0, outcome="failed", first=2.5, last=3.0, end=3.0, gaps=[0.5], output_tokens=2),
    ]
    slo = Slo(ttft=0.05, tpot=0.012, latency=0.5)
    columns, summary = columns_of(records), summarize(run_info(), records, slo)
    for quantiles, values in (
        (summary.ttft, columns.ttft),
        (summary.latency, columns.latency),
        (summary.tpot, columns.tpot),
        (summary.itl, columns.itl()[0]),
        (summary.delay, columns.delay),
    ):
        own = values[np.isfinite(values)]
        assert quantiles is not None
        assert quantiles.count == len(own)
        assert quantiles.mean == pytest.approx(float(own.mean()), rel=1e-6)
    assert summary.good == columns.good(slo).sum()
    assert summary.duration == columns.duration
    assert summary.outcomes["ok"] == columns.ok.sum()


def test_requests_stand_in_the_order_in_which_they_were_due_with_their_own_gaps() -> None:
    records = queue(50, chunk=2)
    columns = columns_of(reversed(records))
    assert (np.diff(columns.at) >= 0).all()
    values, owners = columns.itl()
    for number, record in enumerate(records):
        own = values[owners == number]
        assert sorted(own) == pytest.approx(
            sorted([*record.gaps, *[0.0] * (record.output_tokens - 1 - len(record.gaps))])
        )


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    records = queue(20)
    folder = write_run(tmp_path / "run", records)
    for path in (folder, folder / "records.jsonl"):
        info, columns = read_run(path)
        assert info == run_info()
        assert columns.at.tolist() == [one.at for one in records]
        assert sorted(one.index for one in read_records(path)) == list(range(20))


def test_a_run_without_requests_is_one(tmp_path: Path) -> None:
    _, columns = read_run(write_run(tmp_path, []))
    assert len(columns) == len(columns.itl()[0]) == 0
    assert columns.duration == columns.begin == 0


def test_half_a_line_at_the_end_is_left_out(tmp_path: Path) -> None:
    file = write_run(tmp_path, queue(20)) / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    assert len(read_run(file)[1]) == 19


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no records.jsonl"),
        (b"", "line 1 doesn't describe a run"),
        (b'{"index": 1}\n', "line 1 doesn't describe a run"),
        (b"INFO\n{}\n", "line 2 is no record"),
    ],
)
def test_a_file_that_is_no_run_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        file = write_run(tmp_path, []) / "records.jsonl"
        file.write_bytes(content.replace(b"INFO\n", file.read_bytes()))
    with pytest.raises(RunFileError, match=said):
        read_run(tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="gone: No such file"):
        read_run(tmp_path / "gone")
