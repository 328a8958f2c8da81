"""Which command was meant? ``penstock COMMAND`` finds it here and hands over; nothing else happens in this file.

Each command lives in a module with ``add_arguments(parser)`` and ``run(args) -> exit status``. Importing such a module
is cheap: what is heavy (torch above all) is imported when the command runs.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple


class Command(NamedTuple):
    module: str
    summary: str
    description: str


COMMANDS = {
    "serve": Command(
        "gateway.server",
        "serve a model behind an OpenAI-compatible endpoint",
        "Serve MODEL (a folder in Hugging Face format, or a hub id) behind an OpenAI-compatible endpoint. Without "
        "MODEL, the small demo model that ships with Penstock is served. The address is printed once requests will be "
        "answered, not before. Ctrl-C (or SIGTERM) finishes the running requests, then exits.",
    ),
    "chat": Command(
        "gateway.chat",
        "talk to a running endpoint from the terminal",
        "A small chat client for any OpenAI-compatible endpoint. Ctrl-C stops the answer, ctrl-D leaves.",
    ),
    "worker": Command(
        "engine.options",
        "run one engine worker alone, without a gateway",
        "Run one worker: one process, one model, one device. `penstock serve` starts its own; this is for another "
        "supervisor.",
    ),
    "config": Command(
        "gateway.config.command",
        "check a configuration file",
        "Check a configuration file of `penstock serve --config`, or print its JSON schema.",
    ),
    "key": Command(
        "gateway.traffic.key_command",
        "make an API key, or the hash of one",
        "Make an API key for clients, or the hash of one, for the keys of a configuration file.",
    ),
    "rollout": Command(
        "gateway.traffic.rollout.command",
        "see how canaries do, and decide on them",
        "Show the rollouts of a running server: what is known of each canary, and what is missing until it gets more "
        "traffic; promote one, roll it back, hold it or begin it again.",
    ),
    "log": Command(
        "flywheel.command",
        "look at the request log, or look after it",
        "The request log: ask it with SQL, follow it, export it, compact it, erase a user.",
    ),
    "bench": Command(
        "bench.cli",
        "measure an endpoint under load, or simulate one",
        "Load tests: put load on any OpenAI-compatible endpoint, compare two runs, or simulate a fleet.",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Options come from each command's own module."""
    parser = argparse.ArgumentParser(
        prog="penstock",
        description="LLM inference gateway and serving server.",
        epilog="Start with `penstock serve`, then `penstock chat` in another terminal.",
    )
    parser.add_argument("--version", action="version", version=f"penstock {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.summary, description=command.description)
        importlib.import_module(command.module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named in ``argv`` (default: the process's own arguments) and return its exit status."""
    args = build_parser().parse_args(argv)
    run = importlib.import_module(COMMANDS[args.command].module).run
    try:
        return int(run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        sys.stderr.close()
        return 141


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
