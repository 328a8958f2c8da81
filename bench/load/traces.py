"""What did others ask, and when? Readers of published traces and of our own runs, one row at a time.

Each reader knows its files by their first line. Nothing is guessed and nothing skipped in silence: what doesn't fit is
an error that names file and line. The one exception is documented: BurstGPT's requests that failed have no answer whose
length could be asked for, and are left out.
"""

import csv
import datetime
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from bench.load.arrivals import WorkloadError
from bench.load.records import Record, RunInfo

BLOCK_TOKENS: Final = 512
"""Tokens of a block of a Mooncake trace; the last one of a prompt may have fewer."""

_LAST_BUCKET: Final = 3.0
"""Seconds over which the requests of a trace's only, or last, bucket are spread if nothing else tells its length."""


class TraceError(WorkloadError):
    """A trace that can't be read; the message names the file and the line."""


class TraceRow(NamedTuple):
    """One request of a trace. ``at`` is in seconds since the trace's first request.

    ``blocks`` are ids of blocks of the prompt, `BLOCK_TOKENS` each; prompts with equal ids up to some block are equal
    up to its end.
    """

    at: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


class Reader(NamedTuple):
    """A kind of file: ``knows`` says by its first line whether it is one, ``rows`` reads it from that line on.

    The rows' times are in seconds, ascending, from any beginning. ``rows`` raises ValueError or msgspec's errors, to
    which the file and the line are added. A new kind of file is a new entry of `READERS`.
    """

    name: str
    knows: Callable[[str], bool]
    rows: Callable[[Iterator[str]], Iterator[TraceRow]]


@dataclass(frozen=True)
class Window:
    """Which part of a trace is asked, and how fast.

    Rows from ``start`` seconds of the trace on; their times are divided by ``speed`` and begin at 0. ``duration`` is in
    seconds of the run, so after ``speed``. ``limit`` counts requests. ``spread`` spaces evenly what came in one bucket
    of a trace with coarse times, from its time to the next bucket's. Prompts and answers are cut to ``most_input`` and
    ``most_output`` tokens.
    """

    start: float = 0.0
    duration: float | None = None
    speed: float = 1.0
    limit: int | None = None
    spread: bool = False
    most_input: int | None = None
    most_output: int | None = None


def read_trace(path: Path, window: Window = Window()) -> Iterator[TraceRow]:
    """The rows of a trace of any known kind, in the order of their times. The file is read as they are asked for.

    Raises:
        TraceError: there is no such file, its kind is unknown, or a line doesn't fit.
    """
    rows = _read(path)
    if window.spread:
        rows = _spread(rows)
    count = 0
    for row in rows:
        at = (row.at - window.start) / window.speed
        if at < 0:
            continue
        if count == window.limit or (window.duration is not None and at >= window.duration):
            return
        yield row._replace(
            at=at,
            input_tokens=min(row.input_tokens, window.most_input or row.input_tokens),
            output_tokens=min(row.output_tokens, window.most_output or row.output_tokens),
        )
        count += 1


def kind_of(path: Path) -> str:
    """The name of the reader for this file.

    Raises:
        TraceError: there is no such file, or its kind is unknown.
    """
    with _Numbered(path) as lines:
        return _reader(path, next(lines, "")).name


def _read(path: Path) -> Iterator[TraceRow]:
    with _Numbered(path) as lines:
        first = next(lines, "")
        reader = _reader(path, first)
        begin, before = None, 0.0
        try:
            for row in reader.rows(chain([first], lines)):
                if begin is None:
                    begin = row.at
                if row.at - begin < before:
                    raise ValueError(f"its time is {before - row.at + begin:g} s before that of the line before")
                before = row.at - begin
                yield row._replace(at=before)
        except (ValueError, csv.Error, msgspec.DecodeError) as error:
            raise TraceError(f"{path}:{lines.number}: {error} (read as {reader.name})") from error


def _reader(path: Path, first: str) -> Reader:
    for reader in READERS:
        if reader.knows(first):
            return reader
    shown = first.strip()[:60]
    names = ", ".join(reader.name for reader in READERS)
    raise TraceError(f"{path}:1: {shown!r} begins no trace that is known here: {names}")


class _Numbered(Iterator[str]):
    """A file's lines; ``number`` is that of the latest, from 1."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.number = 0

    def __enter__(self) -> "_Numbered":
        try:
            self._file = self._path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise TraceError(f"{self._path}: {error.strerror or error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __next__(self) -> str:
        try:
            line = self._file.readline()
        except (OSError, UnicodeDecodeError) as error:
            raise TraceError(f"{self._path}:{self.number + 1}: {error}") from error
        if not line:
            raise StopIteration
        self.number += 1
        return line


def _spread(rows: Iterable[TraceRow]) -> Iterator[TraceRow]:
    bucket: list[TraceRow] = []
    width = _LAST_BUCKET
    for row in rows:
        if bucket and row.at > bucket[0].at:
            width = row.at - bucket[0].at
            yield from _spaced(bucket, width)
            bucket = []
        bucket.append(row)
    yield from _spaced(bucket, width)


def _spaced(bucket: list[TraceRow], width: float) -> Iterator[TraceRow]:
    for number, row in enumerate(bucket):
        yield row._replace(at=row.at + width * number / len(bucket))


class _MooncakeLine(msgspec.Struct):
    timestamp: int | float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def _mooncake(lines: Iterator[str]) -> Iterator[TraceRow]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for text in lines:
        line = decoder.decode(text)
        _check_lengths(line.input_length, line.output_length)
        blocks = -(-line.input_length // BLOCK_TOKENS)
        if line.hash_ids and len(line.hash_ids) != blocks:
            raise ValueError(
                f"{len(line.hash_ids)} hash_ids for input_length {line.input_length}: it has {blocks} blocks of "
                f"{BLOCK_TOKENS} tokens"
            )
        yield TraceRow(line.timestamp / 1000, line.input_length, line.output_length, line.hash_ids)


def _azure(lines: Iterator[str]) -> Iterator[TraceRow]:
    for line in _table(lines):
        moment = datetime.datetime.fromisoformat(line["TIMESTAMP"])
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        yield _row(moment.timestamp(), line["ContextTokens"], line["GeneratedTokens"])


def _burst_gpt(lines: Iterator[str]) -> Iterator[TraceRow]:
    for line in _table(lines):
        if line["Response tokens"] != "0":
            yield _row(float(line["Timestamp"]), line["Request tokens"], line["Response tokens"])


def _own_run(lines: Iterator[str]) -> Iterator[TraceRow]:
    """A run's requests again; lines stand in the order in which they ended, so all are read first.

    What was not answered whole is asked for as it was the first time.
    """
    msgspec.json.decode(next(lines), type=RunInfo)
    decoder = msgspec.json.Decoder(Record)
    rows = []
    for text in lines:
        record = decoder.decode(text)
        output = record.output_tokens if record.outcome == "ok" else record.asked_tokens
        _check_lengths(record.prompt_tokens, output)
        rows.append(TraceRow(record.at, record.prompt_tokens, output))
    rows.sort(key=lambda row: row.at)
    yield from rows


def _table(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The lines of a CSV file, whose first line names the columns."""
    table = csv.reader(lines, strict=True)
    names = [name.strip() for name in next(table)]
    for fields in table:
        if len(fields) != len(names):
            raise ValueError(f"{len(fields)} fields where the first line names {len(names)}")
        yield dict(zip(names, map(str.strip, fields), strict=True))


def _row(at: float, input_tokens: str, output_tokens: str) -> TraceRow:
    row = TraceRow(at, int(input_tokens), int(output_tokens))
    _check_lengths(row.input_tokens, row.output_tokens)
    return row


def _check_lengths(input_tokens: int, output_tokens: int) -> None:
    if input_tokens < 1:
        raise ValueError(f"a prompt of {input_tokens} tokens can't be asked")
    if output_tokens < 1:
        raise ValueError(f"an answer of {output_tokens} tokens can't be asked for")


def _is_object_with(*names: str) -> Callable[[str], bool]:
    def knows(line: str) -> bool:
        try:
            value: Any = json.loads(line)
        except ValueError:
            return False
        return isinstance(value, dict) and all(name in value for name in names)

    return knows


def _is_table_with(*columns: str) -> Callable[[str], bool]:
    return lambda line: set(columns) <= {name.strip() for name in line.split(",")}


READERS: Final[tuple[Reader, ...]] = (
    Reader("Mooncake JSONL", _is_object_with("timestamp", "input_length", "output_length"), _mooncake),
    Reader("Azure LLM CSV", _is_table_with("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    Reader("BurstGPT CSV", _is_table_with("Timestamp", "Request tokens", "Response tokens"), _burst_gpt),
    Reader("a run of penstock bench", _is_object_with("kind", "target", "workload"), _own_run),
)
"""What `read_trace` can read."""
