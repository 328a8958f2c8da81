"""What does ``penstock rollout`` do? It shows the rollouts of a running server, and tells it what to do with them."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from gateway.chat import DEFAULT_URL, LOOPBACK

if TYPE_CHECKING:
    import httpx2

    from gateway.wire.rollouts import GuardShown, RolloutShown

_ACTIONS: Final = {
    "promote": ("promote", "give the canary everything", "Give a canary everything, whatever its guards say."),
    "rollback": ("roll_back", "take everything from the canary", "Take everything from a canary."),
    "restart": (
        "restart",
        "begin again at the first step",
        "Begin a rollout again at its first step, also one that is over; its evidence is forgotten.",
    ),
    "hold": (
        "hold",
        "keep the canary at its weight",
        "Keep a canary at its weight until resume. If it is found to be worse it is rolled back all the same.",
    ),
    "resume": ("go_on", "let a rollout that is held go on", "Let a rollout that is held go on."),
}
_TIMEOUT: Final = 10.0
_ENOUGH: Final = 1e6  # evidence of which the exact figure is of no interest


class RolloutError(Exception):
    """Nothing was shown or done; the message is for the person at the terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put all commands on ``parser``."""
    commands = parser.add_subparsers(dest="what", metavar="COMMAND", required=True)
    status = commands.add_parser(
        "status",
        help="show how rollouts stand",
        description="Show how rollouts stand: each canary's weight, the evidence of its guards, what is missing until "
        "it gets more traffic, and what has happened.",
    )
    status.add_argument(
        "model", metavar="MODEL", nargs="?", help="the model, by the name that clients send (default: all)"
    )
    status.add_argument("--json", action="store_true", help="print what the server says as it is")
    _add_server(status)
    for name, (_, summary, description) in _ACTIONS.items():
        command = commands.add_parser(name, help=summary, description=description)
        command.add_argument("model", metavar="MODEL", help="the model, by the name that clients send")
        command.add_argument("--reason", metavar="TEXT", default="", help="why, for the history and the log")
        _add_server(command)


def run(args: argparse.Namespace) -> int:
    """``penstock rollout`` with the command line in ``args``; the exit status.

    0; 1 if the server can't be reached or refuses, 2 if the arguments make no sense.
    """
    import httpx2

    headers: dict[str, str] = {}
    if args.key_env:
        key = os.environ.get(args.key_env)
        if not key:
            print(f"penstock rollout: the environment variable {args.key_env} is not set", file=sys.stderr)
            return 2
        headers["authorization"] = f"Bearer {key}"
    url = args.url.rstrip("/").removesuffix("/v1")
    try:
        # A proxy for the outside world must not get requests to this machine.
        here = httpx2.URL(url).host in LOOPBACK
        with httpx2.Client(headers=headers, timeout=_TIMEOUT, trust_env=not here) as client:
            print(_do(client, url, args))
    except (RolloutError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        print(f"penstock rollout: {error}", file=sys.stderr)
        return 1
    except httpx2.TransportError as error:
        print(f"penstock rollout: no server answers at {url} ({error})", file=sys.stderr)
        return 1
    return 0


def describe(rollout: "RolloutShown", now: float) -> str:
    """How a rollout stands, in a few lines, ``now`` in seconds since the epoch."""
    return "\n".join(_lines(rollout, now))


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--key-env", metavar="NAME", help="the environment variable that holds an admin's API key")


def _do(client: "httpx2.Client", url: str, args: argparse.Namespace) -> str:
    """Do what the command line says; what there is to print.

    Raises:
        RolloutError: the server refuses.
        httpx2.TransportError: it can't be reached.
    """
    import msgspec

    from gateway.wire.rollouts import RolloutList, RolloutShown

    where = f"{url}/admin/rollouts" + (f"/{quote(args.model, safe='')}" if args.model else "")
    if args.what == "status":
        answer = client.get(where)
    else:
        answer = client.post(where, json={"action": _ACTIONS[args.what][0], "reason": args.reason})
    if answer.status_code != 200:
        raise RolloutError(_refusal(answer))
    if args.what == "status" and args.json:
        return answer.text
    try:
        if args.model:
            return describe(msgspec.json.decode(answer.content, type=RolloutShown), time.time())
        found = msgspec.json.decode(answer.content, type=RolloutList).rollouts
    except msgspec.MsgspecError:
        raise RolloutError(f"{url} answers what is no rollout: is it a server of ours?") from None
    return "\n\n".join(describe(one, time.time()) for one in found) or "no rollouts"


def _refusal(answer: "httpx2.Response") -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"{answer.url} answers {answer.status_code}"


def _lines(one: "RolloutShown", now: float) -> Iterator[str]:
    step = f", step {one.step} of {one.steps}" if one.status in ("running", "held") else ""
    status = one.status.replace("_", " ")
    yield f"{one.model}: {one.canary} against {one.stable}"
    yield f"  {status} at {one.weight:g} %{step}, for {_span(now - one.since)}"
    yield f"  {one.reason}"
    yield f"  compared: {one.canaries:,} requests of the canary, {one.controls:,} of the control"
    yield from _table([("guard", "worse", "limit", "harmless", "needed", ""), *map(_row, one.guards)])
    if one.missing:
        yield "  missing until the next step:"
        yield from (f"    {missing}" for missing in one.missing)
    yield "  history:"
    for change in one.history:
        said = change.why if change.what in change.why else f"{change.what}: {change.why}"
        yield f"    {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(change.at))}  {said}"


def _row(guard: "GuardShown") -> tuple[str, ...]:
    odds = (guard.worse, guard.worse_limit, guard.harmless, guard.harmless_limit)
    return (guard.name, *map(_odds, odds), guard.says)


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as they have to be; all but the first and the last one are figures."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *figures, says in rows:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=False)]
        yield "    " + "  ".join([name.ljust(widths[0]), *cells, says]).rstrip()


def _odds(evidence: float) -> str:
    if evidence >= _ENOUGH:
        return "> 1e6"
    return f"{evidence:.0f}" if evidence >= 10 else f"{evidence:.2g}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
