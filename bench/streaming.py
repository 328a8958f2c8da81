"""How fast does a whole server stream? ``python -m bench.streaming`` sends the engine comparison's workload over HTTP.

A server of our own (gateway and worker, default settings) with `tiny` and a tokenizer made for the purpose answers 64
streamed completions at a time, each of 128 random token ids, for 128 tokens. The client reads raw sockets and decodes
nothing, so that it takes little of the machine; how much CPU the gateway took is read from the system.
"""

import argparse
import asyncio
import datetime
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from bench.beside_batch import start_server
from bench.constrained import make_folder
from bench.machine import CpuMeter, Machine, describe
from bench.models import SHAPES
from bench.publish import publish
from bench.workloads import WORKLOADS


class Round(msgspec.Struct, frozen=True):
    """All requests of the workload once; times in seconds, ``gateway_cpu`` for all tokens together."""

    quantization: str
    tokens: int
    seconds: float
    first_tokens: list[float]
    gateway_cpu: float
    foreign_cpu: float


class Report(msgspec.Struct, frozen=True):
    """Every round, and where they were run; ``date`` is ISO 8601, UTC."""

    date: str
    machine: Machine
    rounds: list[Round]


class _Stream(NamedTuple):
    first: float
    tokens: int


async def _stream(host: str, port: int, prompt: list[int], output: int) -> _Stream:
    """One completion; seconds to its first token, and how many it had in the end."""
    body = {
        "model": "tiny-text",
        "prompt": prompt,
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        first, end = 0.0, b""
        while piece := await reader.read(1 << 16):
            end = (end + piece)[-4096:]
            if not first and b"data: {" in end:
                first = time.perf_counter() - began
        said = re.search(rb'"completion_tokens":(\d+)', end)
        return _Stream(first, int(said[1]) if said else 0)
    finally:
        writer.close()


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken, its children left aside."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_round(url: str, pid: int, quantization: str, seed: int) -> Round:
    """Ask everything once.

    Raises:
        RuntimeError: an answer was not whole.
    """
    workload, vocabulary = WORKLOADS["a"], SHAPES["tiny"].vocab
    prompts = workload.prompts(vocabulary, seed)
    address = urlsplit(url)

    async def all_of_them() -> list[_Stream]:
        host, port = address.hostname or "", address.port or 80
        return await asyncio.gather(*[_stream(host, port, prompt, workload.output) for prompt in prompts])

    meter, before, began = CpuMeter(), _cpu(pid), time.perf_counter()
    streams = asyncio.run(all_of_them())
    seconds, cpu, use = time.perf_counter() - began, _cpu(pid) - before, meter.read()
    short = [stream.tokens for stream in streams if stream.tokens != workload.output]
    if short:
        raise RuntimeError(f"{len(short)} answers were not whole: {short[:5]} tokens")
    return Round(quantization, workload.output_tokens, seconds, [one.first for one in streams], cpu, use.foreign)


def markdown(report: Report) -> str:
    """The page of a report."""
    lines = [
        "# A whole server, streaming",
        "",
        "`tiny`, 64 streamed completions at a time, 128 random tokens in, 128 out; medians over the rounds.",
        "",
        "| weights | output tokens/s | first token, median ms | gateway CPU a token, µs | others' share of the CPU |",
        "| --- | --- | --- | --- | --- |",
    ]
    for quantization in dict.fromkeys(one.quantization for one in report.rounds):
        own = [one for one in report.rounds if one.quantization == quantization]
        speed = median(one.tokens / one.seconds for one in own)
        first = median(median(one.first_tokens) for one in own)
        cpu = median(one.gateway_cpu / one.tokens for one in own)
        name = "bf16" if quantization == "none" else quantization
        foreign = max(one.foreign_cpu for one in own)
        lines.append(f"| {name} | {speed:,.0f} | {first * 1e3:.0f} | {cpu * 1e6:.1f} | {foreign:.0%} |")
    machine = report.machine
    lines += ["", f"Measured {report.date} on {machine.cpu}, {machine.cores} cores ({', '.join(machine.flags)})."]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.streaming", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--out", type=Path, help="keep the figures in this JSON file and the page beside it")
    options = parser.parse_args(argv)
    folder, rounds = make_folder(), []
    for quantization in ("none", "int8"):
        with tempfile.TemporaryDirectory() as state:
            process, url = start_server(Path(state), str(folder), "--quantization", quantization)
            try:
                run_round(url, process.pid, quantization, 1000)
                for number in range(options.rounds):
                    rounds.append(run_round(url, process.pid, quantization, number))
                    print(f"bench: {quantization}, round {number + 1}/{options.rounds}", file=sys.stderr)
            finally:
                process.terminate()
                process.wait(60)
    report = Report(datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"), describe(), rounds)
    page = markdown(report)
    print(page, end="")
    if options.out is not None:
        publish(options.out, report, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
