"""Which routers are compared, and how is each started? All with their defaults, but for addresses and the policy."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import run
from typing import NamedTuple


class Upstream(NamedTuple):
    """A worker as a router is told of it: its URL, and where it publishes and replays KV events."""

    url: str
    events: str
    replays: str


class Ports(NamedTuple):
    """Where a router is to answer, and where its metrics go if it wants a port of their own."""

    main: int
    metrics: int


class Side(NamedTuple):
    """A router with a policy. ``command`` gets the workers and the ports; ``python`` is whose packages it uses."""

    name: str
    command: Callable[[Sequence[Upstream], Ports], list[str]]
    package: str
    python: str


def penstock(policy: str) -> Side:
    """Ours, passing through; ``policy`` is one of `scheduler.placement.POLICIES`."""

    def command(workers: Sequence[Upstream], ports: Ports) -> list[str]:
        serve = [sys.executable, "-m", "penstock", "serve", "--host", "127.0.0.1", "--port", str(ports.main)]
        return [*serve, "--placement", policy, *(part for one in workers for part in ("--upstream", one.url))]

    return Side(f"penstock {policy}", command, "penstock", sys.executable)


def sglang_router(python: str, policy: str) -> Side:
    """sglang-router, installed where ``python`` finds it."""

    def command(workers: Sequence[Upstream], ports: Ports) -> list[str]:
        launch = [python, "-m", "sglang_router.launch_router", "--policy", policy, "--log-level", "warn"]
        return [*launch, *_addresses(workers, ports)]

    return Side(f"sglang-router {policy}", command, "sglang-router", python)


def vllm_router(python: str, policy: str, model: str = "", block_size: int = 16) -> Side:
    """vllm-router, installed where ``python`` finds it. ``kv_aware`` follows the workers' KV events."""

    def command(workers: Sequence[Upstream], ports: Ports) -> list[str]:
        launch = [python, "-m", "vllm_router.launch_router", "--policy", policy, "--log-level", "warning"]
        launch += _addresses(workers, ports)
        if policy == "kv_aware":
            launch += ["--kv-event-model", model, "--kv-event-block-size", str(block_size)]
            for one in workers:
                launch += ["--kv-event-source", f"{one.url}={one.events}"]
                launch += ["--kv-event-replay-source", f"{one.url}={one.replays}"]
        return launch

    return Side(f"vllm-router {policy}", command, "vllm-router", python)


def _addresses(workers: Sequence[Upstream], ports: Ports) -> list[str]:
    here = ["--host", "127.0.0.1", "--port", str(ports.main), "--prometheus-port", str(ports.metrics)]
    return [*here, "--worker-urls", *(one.url for one in workers)]


def version(side: Side) -> str:
    """The version of the side's package, as its own Python says.

    Raises:
        ValueError: it isn't installed there.
    """
    if not Path(side.python).is_file():
        raise ValueError(f"{side.python} is no Python: say where {side.package} is installed")
    code = f"import importlib.metadata as m; print(m.version({side.package!r}))"
    done = run([side.python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{side.python} has no {side.package}: install it there with pip")
    return done.stdout.strip()
