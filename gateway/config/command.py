"""What does ``penstock config`` do? It checks a file, or prints the JSON schema for editors."""

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put both commands on ``parser``."""
    commands = parser.add_subparsers(dest="what", metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="say what is wrong in a file",
        description="Check a configuration file. Each fault is printed with its line, its path in the file and what "
        "would be right; the exit status is 1 then, and 0 where there is none.",
    )
    check.add_argument("file", metavar="FILE", help="the configuration file")
    commands.add_parser(
        "schema",
        help="print the JSON schema of a file",
        description="Print the JSON schema of a configuration file, with which editors can complete and check it.",
    )


def run(args: argparse.Namespace) -> int:
    """``penstock config`` with the command line in ``args``; returns the exit status."""
    from gateway.config.reading import ConfigError, read_config
    from gateway.config.structs import schema

    if args.what == "schema":
        print(json.dumps(schema(), indent=2))
        return 0
    try:
        config, _ = read_config(args.file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.file}: {len(config.models)} models, {len(config.targets)} targets, no faults")
    return 0
