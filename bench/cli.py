"""Which part of ``penstock bench`` was meant? Each lives in a module of its own, imported cheaply."""

import argparse
import importlib
from typing import Final, NamedTuple


class Part(NamedTuple):
    module: str
    summary: str
    description: str


PARTS: Final = {
    "run": Part(
        "bench.load.run",
        "put load on an endpoint and measure it",
        "Send a workload to an OpenAI-compatible endpoint, open loop unless said otherwise, and report first-token "
        "times (TTFT), times between tokens (ITL, TPOT), throughput, errors and goodput. Times count from when each "
        "request was due. Ctrl-C stops, and reports what was. Exit status 3: the client itself was too slow, so the "
        "figures must not be used.",
    ),
    "compare": Part(
        "bench.load.compare",
        "weigh two runs against each other",
        "Compare two runs: figures side by side with confidence intervals, and a verdict only where they separate.",
    ),
    "simulate": Part(
        "bench.simulate.cli",
        "run a workload against a simulated fleet",
        "Run a workload against simulated workers: the real scheduler, with a model of how long each step takes. It "
        "reports what `penstock bench run` does.",
    ),
    "worker": Part(
        "bench.workers.cli",
        "answer as a simulated worker, in real time",
        "Answer OpenAI's chat and completion requests as a GPU worker would, without a GPU or a model: the real "
        "scheduler and prefix cache, steps that take as long as they would there, and made-up tokens. It publishes KV "
        "events and metrics under vLLM's names, for gateways to follow.",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put every part, with its options, on ``parser``."""
    parts = parser.add_subparsers(
        dest="part", metavar="PART", required=True, help="what to do; each has its own --help"
    )
    for name, part in PARTS.items():
        sub = parts.add_parser(name, help=part.summary, description=part.description)
        importlib.import_module(part.module).add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    """Do the part that was named; its exit status."""
    return int(importlib.import_module(PARTS[args.part].module).run(args))
