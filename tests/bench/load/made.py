"""Runs that were never run, of known truth: a queue in front of a few slots, as records."""

import heapq
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.load.records import Record, RunInfo, write_line


def run_info(**changes: Any) -> RunInfo:
    fields: dict[str, Any] = {
        "title": "made up",
        "kind": "run",
        "date": "2026-01-02T03:04:05+00:00",
        "target": "http://127.0.0.1:8000",
        "model": "tiny",
        "workload": "400 requests, poisson:20",
        "seed": 0,
        "options": {"arrivals": "poisson:20"},
        "machine": {"cpu": "A CPU", "cores": "2"},
        "versions": {"penstock": "1.2"},
        "duration": 20.0,
    }
    return RunInfo(**{**fields, **changes})


def queue(
    count: int = 400,
    rate: float = 20.0,
    *,
    tokens: int = 24,
    slots: int = 8,
    pace: float = 0.01,
    prefill: float = 0.03,
    stall: tuple[float, float] | None = None,
    failing: float = 0.0,
    chunk: int = 1,
    cached: float = 0.0,
    seed: int = 0,
) -> list[Record]:
    """Poisson arrivals (requests/s) at ``slots`` of a server: ``prefill`` seconds, then about ``pace`` a token, so many
    tokens as ``tokens`` in the mean. Within ``stall`` (when, how long) nothing comes. ``failing`` of all are refused.
    """
    rng = np.random.default_rng(seed)
    free, records = [0.0] * slots, []
    for index, at in enumerate(np.cumsum(rng.exponential(1 / rate, count)).tolist()):
        if rng.random() < failing:
            records.append(Record(index=index, at=at, sent=at, outcome="refused", end=at + 0.002, status=429))
            continue
        wanted = 2 + int(rng.geometric(1 / max(1, tokens - 2)))
        chunks = -(-(wanted - 1) // chunk)
        begun = max(at, heapq.heappop(free))
        steps = np.concatenate([[prefill], pace * chunk * rng.lognormal(0, 0.3, chunks)]) + 1e-9
        times = begun + np.cumsum(steps)
        if stall is not None and begun < stall[0] + stall[1]:
            times[times > stall[0]] += stall[1] - max(0.0, begun - stall[0])
        first, last = float(times[0]), float(times[-1])
        heapq.heappush(free, last)
        records.append(
            Record(
                index=index, at=at, sent=at + 0.0005, outcome="ok", first=first, last=last, end=last + 0.001,
                status=200, gaps=np.diff(times).tolist(),
                gap_tokens=[chunk] * (chunks - 1) + [wanted - 1 - chunk * (chunks - 1)],
                prompt_tokens=100, cached_tokens=int(100 * cached), output_tokens=wanted, asked_tokens=wanted,
            )
        )  # fmt: skip
    return records


def write_run(folder: Path, records: list[Record], info: RunInfo | None = None) -> Path:
    """Put a run's file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [write_line(info or run_info()), *map(write_line, sorted(records, key=lambda one: one.end))]
    (folder / "records.jsonl").write_bytes(b"".join(lines))
    return folder


def autoregressive(series: int, length: int, memory: float, seed: int = 0) -> NDArray[np.float64]:
    """So many series [series, length] of standard normal values, each ``memory`` times the last plus something new."""
    noise = np.random.default_rng(seed).standard_normal((length + 200, series))
    for i in range(1, len(noise)):
        noise[i] = memory * noise[i - 1] + (1 - memory**2) ** 0.5 * noise[i]
    return noise[200:].T
