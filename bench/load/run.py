"""How does an endpoint do under load? ``penstock bench run URL`` asks a workload of it, and writes down what came."""

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.load import workload
from gateway.settings import parse_seconds, parse_share

if TYPE_CHECKING:
    from bench.load.client import Api
    from bench.load.measure import Plan

INVALID: Final = 3
INTERRUPTED: Final = 130
_EPILOG: Final = """\
examples:
  penstock bench run http://127.0.0.1:8000 --arrivals poisson:8 --requests 500 --slo ttft=500ms,tpot=50ms
  penstock bench run https://HOST --model NAME --api-key-env KEY --out run1
  penstock bench run http://127.0.0.1:8000 --sweep --slo ttft=1s,tpot=50ms --duration 60s --out knee"""


class RunError(Exception):
    """A run that can't be; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put what ``penstock bench run`` takes on ``parser``."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("url", metavar="URL", help="the endpoint, with or without /v1, such as http://127.0.0.1:8000")
    parser.add_argument("--model", metavar="NAME", help="which model to ask; default: the endpoint's only one")
    workload.add_arguments(parser)
    group = parser.add_argument_group("how it is asked")
    group.add_argument(
        "--api-key-env", metavar="NAME", help="the environment variable that holds the API key; default: no key"
    )
    group.add_argument(
        "--header", action="append", metavar="NAME: VALUE", help="send this header, too; may be repeated"
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest token (default: 0)"
    )
    group.add_argument(
        "--plain",
        action="store_true",
        help="leave out what OpenAI's own API doesn't take: ignore_eos and min_tokens, without which answers may end "
        "before the length that the workload says, and return_token_ids, without which a chunk counts as one token",
    )
    group.add_argument(
        "--extra-body",
        type=_fields,
        metavar="JSON",
        help='fields for each request\'s body, such as {"top_p": 0.9}; one of ours is replaced, or left out if null',
    )
    group.add_argument(
        "--quickack",
        action="store_true",
        help="acknowledge at once what comes (TCP_QUICKACK): a server that doesn't set TCP_NODELAY would otherwise "
        "hold back small pieces, by up to 40 ms",
    )
    group.add_argument(
        "--timeout",
        type=_typed(parse_seconds),
        default=600.0,
        metavar="TIME",
        help="give a request up so long after it was due (default: 600s)",
    )
    group.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="client processes, each with its share of the requests; one drives about 2,000 requests/s (default: 1)",
    )
    _add_judging(parser)


def _add_judging(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is judged")
    group.add_argument(
        "--slo",
        metavar="BOUNDS",
        help="what makes a request good, such as ttft=500ms,tpot=50ms; latency=10s bounds the whole. Goodput is the "
        "share of all requests offered that are; default: none is stated",
    )
    group.add_argument(
        "--delay-bound",
        type=_typed(parse_seconds),
        default=0.01,
        metavar="TIME",
        help="the run is invalid, and the exit status 3, if 1 %% of the requests went out later than this "
        "(default: 10ms)",
    )
    group.add_argument("--title", default="", metavar="TEXT", help="the run's name in reports; default: the workload")
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="keep the requests (records.jsonl), the summary (summary.json, summary.txt) and the report there; "
        "default: only print the summary",
    )
    sweep = parser.add_argument_group("the knee")
    sweep.add_argument(
        "--sweep",
        action="store_true",
        help="find the highest rate that keeps --slo: begin with that of --arrivals, double it until goodput falls, "
        "then halve the distance. Each level lasts --duration (default: 30s), and ends early if the queue grows "
        "without bound",
    )
    sweep.add_argument(
        "--sweep-share",
        type=_typed(parse_share),
        default=0.95,
        metavar="SHARE",
        help="a rate holds if this share of all requests offered is good (default: 0.95)",
    )
    sweep.add_argument(
        "--sweep-precision",
        type=_typed(parse_share),
        default=0.05,
        metavar="SHARE",
        help="end when the rates that hold and that don't differ by no more than this (default: 0.05)",
    )


def run(args: argparse.Namespace) -> int:
    """Run it, once or as a sweep; the exit status."""
    from bench.load.processes import ClientsError

    try:
        plan = _plan(args)
        if args.sweep:
            return _search(plan, args)
        return _once(plan, args)
    except (ValueError, OverflowError) as error:
        return _say(f"{error}", 2)
    except (RunError, ClientsError, OSError) as error:
        return _say(f"{error}", 1)


def _say(text: str, status: int) -> int:
    print(f"penstock bench run: {text}", file=sys.stderr)
    return status


def _plan(args: argparse.Namespace) -> "Plan":
    from bench.load.client import Api, parse_headers, with_key
    from bench.load.http import head, parse_url
    from bench.load.measure import Plan
    from bench.load.summary import parse_slo

    key = os.environ.get(args.api_key_env) if args.api_key_env else None
    if args.api_key_env and not key:
        raise ValueError(f"the environment variable {args.api_key_env} is not set")
    if args.processes < 1:
        raise ValueError(f"--processes must be at least 1, not {args.processes}")
    if args.timeout <= 0:
        raise ValueError("--timeout must be above 0")
    slo = parse_slo(args.slo) if args.slo else None
    if args.sweep and slo is None:
        raise ValueError("--sweep looks for the rate that keeps --slo: say which, such as --slo ttft=500ms,tpot=50ms")
    if args.out is not None and args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty: name another folder with --out")
    headers = with_key(parse_headers(args.header or []), key)
    target = parse_url(args.url)
    head(target, "GET", "/models", headers)
    workload.from_args(args, prompts=False)  # what is wrong with it shows before the endpoint is asked
    api = Api(
        url=args.url,
        model=args.model or "",
        headers=headers,
        temperature=args.temperature,
        extensions=not args.plain,
        extra=args.extra_body or {},
        quickack=args.quickack,
    )
    if not args.model:
        api = _with_model(api)
    return Plan(api, slo, args.delay_bound, args.timeout, args.processes, args.title, args)


def _with_model(api: "Api") -> "Api":
    """The same, with the only model that the endpoint has."""
    import msgspec

    from bench.load.client import Client, message
    from bench.load.http import parse_url

    async def ask() -> tuple[int, bytes]:
        return await Client(api, parse_url(api.url)).get("/models")

    try:
        status, body = asyncio.run(ask())
    except (OSError, TimeoutError) as error:
        raise RunError(f"{error or 'no answer to /v1/models in 30 s'}") from None
    if status != 200:
        raise RunError(f"{api.url} doesn't list its models (HTTP {status}: {message(body)}): say --model NAME")
    try:
        names = [str(one["id"]) for one in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{api.url} answered /v1/models with something else than a list: say --model NAME") from None
    if len(names) != 1:
        listed = ", ".join(names[:10]) or "it has none"
        raise RunError(f"{api.url} has {len(names)} models: say --model NAME ({listed})")
    return msgspec.structs.replace(api, model=names[0])


def _once(plan: "Plan", args: argparse.Namespace) -> int:
    from rich.console import Console

    from bench.load.measure import measure
    from bench.load.summary import render

    with _folder(args.out) as folder:
        result = measure(plan, args, folder)
        Console(highlight=False).print(render(result.summary))
    if args.out is not None:
        report(args.out)
    if result.stopped:
        return INTERRUPTED
    if result.summary.invalid:
        return INVALID
    return 0 if result.summary.outcomes.get("ok") else _say("no request was answered", 1)


def _search(plan: "Plan", args: argparse.Namespace) -> int:
    from bench.load.sweep import knee, run_sweep

    with _folder(args.out) as folder:
        found, interrupted = run_sweep(plan, args, folder, lambda line: print(line, flush=True))
    if args.out is not None:
        report(args.out)
    print(knee(found))
    late = [level.rate for level in found.levels if level.invalid]
    if interrupted:
        return INTERRUPTED
    return _say(f"the client was too slow at {late[0]:g}/s: use more --processes", INVALID) if late else 0


def report(folder: Path) -> None:
    """Write the report beside the files of a run, if what draws it is installed; else say how to get it."""
    try:
        importlib.import_module("bench.load.report").write(folder)
    except ImportError as error:
        print(f"penstock bench: no plots, for want of {error.name}: pip install 'penstock[bench]'", file=sys.stderr)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """``out``, or else a folder for the time being."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        yield Path(folder)


def _typed(parse: Callable[[str], float]) -> Callable[[str], float]:
    def checked(text: str) -> float:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _fields(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object: write {{"top_p": 0.9}}')
    return found
