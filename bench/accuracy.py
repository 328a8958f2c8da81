"""What does rounding cost in accuracy? ``python -m bench.accuracy`` asks the demo model in float32, bfloat16 and int8.

Our own engine answers held-out questions greedily (exact match), and scores the right answers (perplexity of their
tokens, given the chat). The same questions for everybody, from one seed.
"""

import argparse
import datetime
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from bench.machine import Machine, describe
from engine.link import Sampling
from engine.options import WorkerOptions
from engine.threads import bound_spinning

if TYPE_CHECKING:
    from engine.demo.evaluate import Asked
    from engine.engine import Engine
    from engine.job import Job

_OPTIONS: Final = WorkerOptions(listen="unix:unused", kv_memory=256 << 20)  # no model: the demo model
FORMS: Final = {
    "float32": replace(_OPTIONS, dtype="float32"),
    "bfloat16": replace(_OPTIONS, dtype="bfloat16"),
    "int8": replace(_OPTIONS, dtype="bfloat16", quantization="int8"),
}
_LONGEST: Final = 96


class Accuracy(msgspec.Struct, frozen=True):
    """``right`` of ``asked`` answers were exactly right; ``perplexity`` over ``tokens`` of right answers."""

    form: str
    right: int
    asked: int
    perplexity: float
    tokens: int


class Report(msgspec.Struct, frozen=True):
    """Every form, and where it was asked; ``date`` is ISO 8601, UTC."""

    date: str
    machine: Machine
    questions: str
    results: list[Accuracy]


def ask(form: str, chats: Sequence["Asked"]) -> Accuracy:
    """Ask one form all of ``chats``."""
    from transformers import AutoTokenizer

    from engine.demo import MODEL_FOLDER
    from engine.engine import Engine

    engine = Engine.build(FORMS[form], lambda stage, done, total: None)
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    prompts = [
        tokenizer.apply_chat_template(
            chat.messages, tools=list(chat.tools) or None, tokenize=False, add_generation_prompt=True
        )
        for chat in chats
    ]
    asked = [tokenizer.encode(text, add_special_tokens=False) for text in prompts]
    answers = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in _answer(engine, asked)]
    right = sum(answer == chat.item.answer for answer, chat in zip(answers, chats, strict=True))
    wanted = [
        tokenizer.encode(text + chat.item.answer, add_special_tokens=False)
        for text, chat in zip(prompts, chats, strict=True)
    ]
    scores = _score(engine, asked, wanted)
    return Accuracy(form, right, len(chats), math.exp(-sum(scores) / len(scores)), len(scores))


def _job(engine: "Engine", uid: int, tokens: Sequence[int], sampling: "Sampling") -> "Job":
    from engine.job import Job

    return Job(
        uid=uid,
        tokens=list(tokens),
        sampling=sampling,
        seed=0,
        max_tokens=sampling.max_tokens,
        max_len=engine.max_model_len,
        stop_ids=engine.stop_ids(sampling),
        min_tokens=0,
        arrival=0.0,
        ttft=1.0,
        tpot=0.05,
    )


def _run(engine: "Engine", jobs: Sequence["Job"]) -> None:
    for job in jobs:
        engine.add(job)
    while engine.busy:
        engine.step()


def _answer(engine: "Engine", prompts: Sequence[list[int]]) -> list[list[int]]:
    """The greedy answer to each of ``prompts``."""
    sampling = Sampling(max_tokens=_LONGEST, temperature=0.0)
    jobs = [_job(engine, uid, prompt, sampling) for uid, prompt in enumerate(prompts)]
    _run(engine, jobs)
    return [job.tokens[len(prompt) :] for job, prompt in zip(jobs, prompts, strict=True)]


def _score(engine: "Engine", prompts: Sequence[list[int]], whole: Sequence[list[int]]) -> list[float]:
    """The log-probability of every token of ``whole`` behind its prompt."""
    import numpy as np

    sampling = Sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    found: list[float] = []
    for uid, (prompt, tokens) in enumerate(zip(prompts, whole, strict=True), start=1 << 20):
        job = _job(engine, uid, tokens, sampling)
        _run(engine, [job])
        assert job.scorer is not None
        found += np.frombuffer(job.scorer.result().logprobs, "<f4")[len(prompt) - 1 :].tolist()
    return found


def questions(count: int, seed: int) -> list["Asked"]:
    """``count`` held-out questions for every trained domain and task."""
    from engine.demo.conversations import prompt
    from engine.demo.domains import TRAINED
    from engine.demo.evaluate import Asked, held_out

    return [Asked(item, prompt(item)) for item in held_out(count, seed, TRAINED)]


def markdown(report: Report) -> str:
    """The page of a report."""
    lines = [
        "# What rounding costs",
        "",
        f"The demo model, by our own engine: {report.questions}.",
        "",
        "| weights | exact match | perplexity of the right answers |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {one.form} | {100 * one.right / one.asked:.2f} % of {one.asked:,} | {one.perplexity:.4f} |"
        for one in report.results
    ]
    machine = report.machine
    lines += ["", f"Measured {report.date} on {machine.cpu}, {machine.cores} cores ({', '.join(machine.flags)})."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="questions for each task in each domain; default: 40")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the figures in this JSON file and the page beside it")
    options = parser.parse_args()
    bound_spinning()
    chats = questions(options.count, options.seed)
    report = Report(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        machine=describe(),
        questions=f"{options.count} held-out questions for each task in each trained domain, seed {options.seed}",
        results=[ask(form, chats) for form in FORMS],
    )
    page = markdown(report)
    print(page, end="")
    if options.out is not None:
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        options.out.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
