from itertools import islice, pairwise
from pathlib import Path

import pytest

from bench.load.records import Record, RunInfo, write_line
from bench.load.traces import READERS, TraceError, TraceRow, Window, kind_of, read_trace

SHARED = Path(__file__).parents[4] / "shared/traces"

MOONCAKE = """\
{"timestamp": 27000, "input_length": 700, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 27000, "input_length": 1024, "output_length": 20, "hash_ids": [0, 2]}
{"timestamp": 27000, "input_length": 30, "output_length": 1, "hash_ids": [3]}
{"timestamp": 30000, "input_length": 30, "output_length": 1}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.7500000,374,44
2023-11-16 18:15:51.0000000,396,109
"""
BURST_GPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
INFO = RunInfo(
    title="a run",
    kind="run",
    date="2026-01-01T00:00+00:00",
    target="http://127.0.0.1:8000",
    model="m",
    workload="w",
    seed=0,
    options={},
    machine={},
    versions={},
)
RECORDS = [
    Record(index=1, at=2.5, outcome="ok", end=3.0, prompt_tokens=20, output_tokens=6, asked_tokens=9),
    Record(index=0, at=0.5, outcome="timeout", end=9.0, prompt_tokens=10, output_tokens=2, asked_tokens=7),
]
RUN = b"".join([write_line(INFO), *map(write_line, RECORDS)]).decode()

WANTED = {
    "Mooncake JSONL": (
        MOONCAKE,
        [
            TraceRow(0, 700, 500, (0, 1)),
            TraceRow(0, 1024, 20, (0, 2)),
            TraceRow(0, 30, 1, (3,)),
            TraceRow(3, 30, 1),
        ],
    ),
    "Azure LLM CSV": (AZURE, [TraceRow(0, 374, 44), TraceRow(4.25, 396, 109)]),
    "BurstGPT CSV": (BURST_GPT, [TraceRow(0, 472, 18), TraceRow(113, 417, 276)]),
    "a run of penstock bench": (RUN, [TraceRow(0, 10, 7), TraceRow(2, 20, 6)]),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", [reader.name for reader in READERS])
def test_each_kind_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    text, rows = WANTED[name]
    path = written(tmp_path, text)
    assert kind_of(path) == name
    assert list(read_trace(path)) == rows


def test_azures_newer_files_have_time_zones_and_some_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-05-10 00:00:00.009930+00:00,2162,5\r\n"
    assert list(read_trace(written(tmp_path, text))) == [TraceRow(0, 2162, 5)]


def test_a_window_has_a_start_a_duration_a_speed_and_a_limit(tmp_path: Path) -> None:
    lines = [
        f'{{"timestamp": {second * 1000}, "input_length": {second + 1}, "output_length": 1}}' for second in range(60)
    ]
    path = written(tmp_path, "\n".join(lines))
    rows = list(read_trace(path, Window(start=10, duration=5, speed=4)))
    assert [row.at for row in rows] == [number / 4 for number in range(20)]
    assert rows[0].input_tokens == 11
    assert len(list(read_trace(path, Window(start=10, duration=5, speed=4, limit=3)))) == 3
    assert not list(read_trace(path, Window(start=60)))


def test_long_prompts_and_answers_can_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 1500, "output_length": 9, "hash_ids": [1, 2, 3]}\n'
        '{"timestamp": 1, "input_length": 100, "output_length": 90, "hash_ids": [1]}\n'
    )
    rows = list(read_trace(path, Window(most_input=600, most_output=20)))
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [(600, 9), (100, 20)]


def test_buckets_are_spread_up_to_the_next_one(tmp_path: Path) -> None:
    rows = list(read_trace(written(tmp_path, MOONCAKE), Window(spread=True)))
    assert [row.at for row in rows] == [0, 1, 2, 3]
    last = MOONCAKE.splitlines()[3]
    rows = list(read_trace(written(tmp_path, f"{MOONCAKE}{last}\n{last}"), Window(spread=True)))
    assert [row.at for row in rows] == [0, 1, 2, 3, 4, 5]


def test_a_file_is_read_as_its_rows_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, MOONCAKE + "nonsense\n")
    assert len(list(islice(read_trace(path), 4))) == 4
    with pytest.raises(TraceError, match=":5: "):
        list(read_trace(path))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "'' begins no trace that is known here: Mooncake JSONL, Azure"),
        ("time,tokens\n1,2\n", 1, "'time,tokens' begins no trace"),
        ('{"timestamp": 0, "input_length": 5, "output_length": "x"}', 1, "Expected `int`, got `str`"),
        (MOONCAKE + '{"timestamp": 30000}', 5, "missing required field `input_length`"),
        (MOONCAKE + MOONCAKE, 5, "its time is 3 s before that of the line before"),
        (MOONCAKE.replace("[0, 2]", "[0]"), 2, "1 hash_ids for input_length 1024: it has 2 blocks of 512 tokens"),
        (MOONCAKE.replace('"input_length": 30', '"input_length": 0'), 3, "a prompt of 0 tokens can't be asked"),
        (AZURE + "2023-11-16 18:15:51,5,0\n", 4, "an answer of 0 tokens can't be asked for"),
        (AZURE + "yesterday,5,1\n", 4, "yesterday"),
        (AZURE + "2023-11-16 18:15:51,5\n", 4, "2 fields where the first line names 3"),
        (AZURE + "2023-11-16 18:15:51,five,1\n", 4, "'five'"),
        (BURST_GPT + '119,"GPT-4,1,1,2,API log\n', 5, "unexpected end of data"),
        (RUN + "{}\n", 4, "missing required field"),
        (RUN.replace('"prompt_tokens":20', '"prompt_tokens":0'), 2, "a prompt of 0 tokens"),
    ],
)
def test_errors_name_file_and_line(text: str, line: int, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as error:
        list(read_trace(path))
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert says in str(error.value)


def test_what_is_no_text_is_an_error_too(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match=f"{path}:1: "):
        list(read_trace(path))
    with pytest.raises(TraceError, match="No such file"):
        kind_of(tmp_path / "none")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real traces are not part of the product")
def test_real_traces_are_read_whole() -> None:
    rows = list(read_trace(SHARED / "mooncake_conversation.jsonl", Window(spread=True)))
    assert len(rows) == 12_031
    assert sum(row.input_tokens for row in rows) == 144_793_823
    assert all(later.at > earlier.at for earlier, later in pairwise(rows))
    assert sum(1 for _ in read_trace(SHARED / "azure_2023_conv.csv")) == 19_366
