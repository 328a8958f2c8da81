"""What does a side of the engine comparison do? It loads one model, warms up, and times each workload once.

A side is a program, ``python -m bench.sides.NAME``, run by `bench.engine` in a process and, where it needs one, an
environment of its own. So this module uses the standard library only.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from bench.machine import CpuMeter
from bench.workloads import WORKLOADS, Workload


class Side(Protocol):
    """An engine with a model in it."""

    versions: dict[str, str]

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> list[int]:
        """Answer every prompt greedily, past any end-of-sequence token; returns how many tokens each answer has."""


@dataclass(frozen=True)
class Timing:
    """One workload, once: from handing over all prompts to having all answers, in seconds."""

    workload: str
    output_tokens: int
    seconds: float
    own_cpu: float
    foreign_cpu: float


class ShortAnswer(Exception):
    """A side answered with more or fewer tokens than it was asked for: its time means nothing."""


def measure(side: Side, name: str, workload: Workload, vocab_size: int, seed: int) -> Timing:
    """Warm up on fresh prompts of the workload's own shape, then time it on others.

    Raises:
        ShortAnswer: an answer has the wrong length.
    """
    side.generate(workload.prompts(vocab_size, 2 * seed), min(workload.output, 8))
    prompts = workload.prompts(vocab_size, 2 * seed + 1)
    cpu, start = CpuMeter(), time.perf_counter()
    lengths = side.generate(prompts, workload.output)
    seconds, use = time.perf_counter() - start, cpu.read()
    if lengths != [workload.output] * workload.requests:
        raise ShortAnswer(f"workload {name} asked for {workload.output} tokens each and got {lengths}")
    return Timing(name, sum(lengths), seconds, use.own, use.foreign)


def main(load: Callable[[Path, str], Side]) -> None:
    """The program of a side: ``load`` gets the model's folder, and which variant of the side it is to be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--workloads", nargs="+", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    vocab_size = json.loads((args.model / "config.json").read_text())["vocab_size"]
    side = load(args.model, args.variant)
    timings = []
    for name in args.workloads:
        workload = WORKLOADS[name].shortened() if args.short else WORKLOADS[name]
        timings.append(asdict(measure(side, name, workload, vocab_size, args.seed)))
    args.out.write_text(json.dumps({"versions": side.versions, "timings": timings}))
