"""What do a grammar's bitmasks cost the batch, its unconstrained half above all? ``python -m bench.constrained``.

The same 64 requests, random prompts at temperature 1, are answered by one engine with no grammar at all, and with a
JSON schema for every second one; round by round, each side first in turn. Every answer has the same length: the schema
can't be satisfied in fewer tokens. The model is the engine comparison's `tiny`, with a tokenizer made for the purpose.
"""

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import msgspec

from bench.engine import MODELS, make_model, rotated
from bench.machine import CpuMeter, Machine, describe
from bench.models import SHAPES
from bench.publish import publish
from bench.workloads import Workload
from engine.threads import bound_spinning

if TYPE_CHECKING:
    from engine.job import Job

WORKLOAD: Final = Workload(requests=64, shared=0, own=64, output=128)
SIDES: Final = {"none": 0, "half": 2}  # every how manyth request is constrained
_ITEM: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["person", "company", "public body"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "code": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "code"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "kind", "tags", "address"],
    "additionalProperties": False,
}
SCHEMA: Final = {"type": "array", "items": _ITEM, "minItems": 1000}


class Round(msgspec.Struct, frozen=True):
    """One side, once. ``step`` is the median of its steps that draw for everybody, in seconds (NaN: none did).

    ``cpu`` is the CPU time of all our threads, in seconds: it tells more than ``seconds`` where others are at work.
    """

    side: str
    output_tokens: int
    seconds: float
    cpu: float
    step: float
    foreign_cpu: float


class Report(msgspec.Struct, frozen=True):
    """Every round, and where they were run; ``date`` is ISO 8601, UTC."""

    date: str
    machine: Machine
    rounds: list[Round]


def make_folder() -> Path:
    """The folder of `tiny` with a byte-level tokenizer of its size, trained on Python's own help; made on first use."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain, folder = make_model("tiny"), MODELS / "tiny-text"
    if (folder / "tokenizer.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).hardlink_to(plain / name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPES["tiny"].vocab,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(topics.values(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


class Bench:
    """One engine, and one side of the measurement at a time."""

    def __init__(self, folder: Path, workload: Workload = WORKLOAD) -> None:
        from engine.engine import Engine
        from engine.options import WorkerOptions

        options = WorkerOptions(listen="unix:unused", model=str(folder), dtype="bfloat16")
        self._engine: Engine = Engine.build(options, lambda stage, done, total: None)
        self._workload = workload
        self._next_uid = 0

    def run(self, side: str, seed: int) -> Round:
        """Answer the workload's requests; another ``seed`` makes prompts that no cache has seen."""
        engine, workload = self._engine, self._workload
        prompts = workload.prompts(engine.config.vocab_size, seed)
        meter, start, began = CpuMeter(), time.perf_counter(), time.process_time()
        jobs = [self._job(prompt, place, SIDES[side]) for place, prompt in enumerate(prompts)]
        for job in jobs:
            engine.add(job)
        steps = []
        while engine.busy:
            outcome = engine.step()
            if outcome and len(outcome.drawn) == workload.requests:
                steps.append(outcome.seconds)
        seconds, cpu, use = time.perf_counter() - start, time.process_time() - began, meter.read()
        short = [job.generated for job in jobs if job.generated != workload.output]
        if short:
            raise RuntimeError(f"answers of {workload.output} tokens were asked for, and some have {short}")
        return Round(side, workload.output_tokens, seconds, cpu, median(steps or [math.nan]), use.foreign)

    def _job(self, prompt: list[int], place: int, every: int) -> "Job":
        from engine.job import Job
        from engine.link import Sampling

        engine, output = self._engine, self._workload.output
        grammar = ""
        if every and place % every == 0:
            grammar = json.dumps({"grammars": [{"json_schema": SCHEMA}]})
        sampling = Sampling(max_tokens=output, ignore_eos=True, grammar=grammar)
        assert engine.grammars is not None, "the model was given a tokenizer"
        compiled = engine.grammars.compile(grammar) if grammar else None
        self._next_uid += 1
        return Job(
            uid=self._next_uid,
            tokens=prompt,
            sampling=sampling,
            seed=place,
            max_tokens=output,
            max_len=engine.max_model_len,
            stop_ids=engine.stop_ids(sampling),
            constraint=engine.constraint(sampling, compiled),
            arrival=time.monotonic(),
            ttft=1.0,
            tpot=0.05,
        )


def markdown(report: Report) -> str:
    """The figures as a table, and what the half-constrained batch loses."""
    lines = [
        "| constrained | output tokens/s | decode step, ms | CPU, us a token | foreign CPU, worst |",
        "| --- | --- | --- | --- | --- |",
    ]
    speeds, steps, cpus = {}, {}, {}
    for side in SIDES:
        rounds = [one for one in report.rounds if one.side == side]
        speeds[side] = median(one.output_tokens / one.seconds for one in rounds)
        steps[side] = median(one.step for one in rounds)
        cpus[side] = median(one.cpu / one.output_tokens for one in rounds)
        worst = max(one.foreign_cpu for one in rounds)
        lines.append(
            f"| {side} | {speeds[side]:,.0f} | {steps[side] * 1e3:.2f} | {cpus[side] * 1e6:,.0f} | {worst:.0%} |"
        )
    lost, slower, dearer = (
        1 - speeds["half"] / speeds["none"],
        steps["half"] / steps["none"] - 1,
        cpus["half"] / cpus["none"] - 1,
    )
    lines.append(
        f"\nHalf constrained, by medians: {lost:.1%} fewer output tokens/s, decode steps {slower:.1%} longer, "
        f"{dearer:.1%} more CPU time a token."
    )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and keep everything if asked to; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.constrained", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--out", type=Path, help="keep the measurements in this JSON file and the table beside it")
    args = parser.parse_args(argv)
    bound_spinning()  # as the worker does
    bench, rounds = Bench(make_folder()), []
    for side in SIDES:
        bench.run(side, seed=-1)  # warms up
    for turn in range(args.rounds):
        for side in rotated(list(SIDES), turn):
            rounds.append(bench.run(side, seed=turn))
            one = rounds[-1]
            speed = one.output_tokens / one.seconds
            print(
                f"round {turn + 1}/{args.rounds}  {side}  {speed:,.0f} tok/s  step {one.step * 1e3:.2f} ms  "
                f"({one.foreign_cpu:.0%} foreign)",
                file=sys.stderr,
                flush=True,
            )
    report = Report(datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"), describe(), rounds)
    table = markdown(report)
    print(table)
    if args.out:
        publish(args.out, report, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
