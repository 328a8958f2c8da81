"""What do a run's records hold, as arrays? What plots and intervals are made of, a million requests at a time.

What counts as a latency is what `bench.load.summary` counts.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.load.records import Outcome, Record, RunInfo
from bench.load.summary import Slo

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

RECORDS: Final = "records.jsonl"
OUTCOMES: Final[tuple[str, ...]] = get_args(Outcome)


class RunFileError(ValueError):
    """A file that is no run's; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """A run's requests in the order of ``at``, one element each; seconds, NaN where there is none.

    ``outcome`` numbers `OUTCOMES`, ``delay`` is how late a request was sent. ``ttft`` and ``latency`` are of those
    requests that count, ``first`` is of all. ``gaps`` are all requests' gaps one after the other, ``gap_counts`` of
    each; ``joined`` is how many tokens more came together with another, 0 s after it.
    """

    at: Floats
    delay: Floats
    first: Floats
    end: Floats
    outcome: Ints
    ttft: Floats
    latency: Floats
    tpot: Floats
    prompt: Ints
    cached: Ints
    output: Ints
    gaps: Floats
    gap_counts: Ints
    joined: Ints

    def __len__(self) -> int:
        return len(self.at)

    @property
    def ok(self) -> Flags:
        """Which requests were answered."""
        return np.asarray(self.outcome == OUTCOMES.index("ok"))

    @property
    def begin(self) -> float:
        """When the first request was due, in seconds since the run's beginning."""
        return float(self.at[0]) if len(self) else 0.0

    @property
    def duration(self) -> float:
        """Seconds from the first request's start to the last one's end."""
        return float(self.end.max()) - self.begin if len(self) else 0.0

    def good(self, slo: Slo) -> Flags:
        """Which requests kept their objectives; see `Slo.met`."""
        good = self.ok
        for bound, values in ((slo.ttft, self.ttft), (slo.tpot, np.nan_to_num(self.tpot)), (slo.latency, self.latency)):
            if bound is not None:
                good &= values <= bound
        return good

    def itl(self) -> tuple[Floats, Ints]:
        """All times between tokens, and the number of the request that each is of."""
        numbers = np.arange(len(self))
        owners = np.concatenate([np.repeat(numbers, self.gap_counts), np.repeat(numbers, self.joined)])
        return np.concatenate([self.gaps, np.zeros(int(self.joined.sum()))]), owners


def columns_of(records: Iterable[Record]) -> Columns:
    """Records, in any order, as columns."""
    numbers, counts, gaps, lengths = array("d"), array("q"), array("f"), array("q")
    for one in records:
        ttft, late = one.ttft, one.outcome == "timeout"
        latency = one.latency if late or one.outcome == "ok" else None
        tpot = one.tpot if one.outcome == "ok" else None
        row = (one.at, one.delay, one.first, one.end, latency if ttft is None and late else ttft, latency, tpot)
        numbers.extend([np.nan if value is None else value for value in row])
        joined = max(0, one.output_tokens - 1 - len(one.gaps)) if one.first is not None else 0
        code = OUTCOMES.index(one.outcome)
        counts.extend((code, one.prompt_tokens, one.cached_tokens, one.output_tokens, joined))
        gaps.extend(one.gaps)
        lengths.append(len(one.gaps))
    table = np.frombuffer(numbers, dtype=np.float64).reshape(-1, 7) if numbers else np.empty((0, 7))
    whole = np.frombuffer(counts, dtype=np.int64).reshape(-1, 5) if counts else np.empty((0, 5), dtype=np.int64)
    order = np.argsort(table[:, 0], kind="stable")
    at, delay, first, end, ttft_, latency_, tpot_ = (np.ascontiguousarray(column[order]) for column in table.T)
    outcome, prompt, cached, output, joined_ = (np.ascontiguousarray(column[order]) for column in whole.T)
    size = np.array(lengths, dtype=np.int64)
    flat = np.array(gaps, dtype=np.float32)
    ends, sizes = np.cumsum(size)[order], size[order]
    places = np.repeat(ends - np.cumsum(sizes), sizes) + np.arange(len(flat))
    return Columns(
        at, delay, first, end, outcome, ttft_, latency_, tpot_, prompt, cached, output,
        gaps=flat[places].astype(np.float64), gap_counts=sizes, joined=joined_,
    )  # fmt: skip


def read_run(path: Path) -> tuple[RunInfo, Columns]:
    """A run, from its records file or the folder that has one.

    Raises:
        RunFileError: there is none, or something else is in it.
    """
    file = path / RECORDS if path.is_dir() else path
    try:
        with file.open("rb") as lines:
            head = lines.readline()
            try:
                info = msgspec.json.decode(head, type=RunInfo)
            except msgspec.DecodeError as error:
                raise RunFileError(f"{file}: line 1 doesn't describe a run: {error}") from None
            return info, columns_of(_records(file, lines))
    except OSError as error:
        if path.is_dir() and isinstance(error, FileNotFoundError):
            raise RunFileError(f"{path} has no {RECORDS}: give a folder that `--out` made, or the file") from None
        raise RunFileError(f"{file}: {error.strerror}") from None


def read_records(path: Path) -> Iterator[Record]:
    """A run's records alone, one after the other; see `read_run`."""
    file = path / RECORDS if path.is_dir() else path
    with file.open("rb") as lines:
        lines.readline()
        yield from _records(file, lines)


def _records(file: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    decode = msgspec.json.Decoder(Record).decode
    for number, line in enumerate(lines, 2):
        try:
            yield decode(line)
        except msgspec.DecodeError as error:
            if not line.endswith(b"\n"):  # the run was cut off while it wrote
                return
            raise RunFileError(f"{file}: line {number} is no record: {error}") from None
