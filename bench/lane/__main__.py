"""``python -m bench.lane``: measures the pass-through lane, and writes the tables.

Several sides, one after the other: the upstream itself, a proxy that does the least (`bench.lane.bare`), the gateway
with key check, placement over eight upstreams, usage counting and metrics on, and, where it is said which Python has
them, other routers over the same eight, placing by their caches. ``--memory`` measures what becomes of the gateway's
memory in a million requests and ten thousand clients that leave.
"""

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.lane.report import markdown
from bench.lane.rig import KEY, Rig, free_port, gateway, memory, ours, router
from bench.machine import CpuMeter, describe, version_of
from bench.routers.sides import Ports, Side, Upstream, sglang_router, version, vllm_router

_RESULTS: Final = Path(__file__).parents[1] / "results"
_REQUESTS: Final = 1_000_000
_LEAVERS: Final = 10_000
_AT_ONCE: Final = 100


def measure(rig: Rig, port: int, pid: int | None, seconds: float) -> dict[str, Any]:
    """All of a side's figures."""
    return {
        "many": rig.load(port, "ns", connections=64, seconds=seconds, pid=pid),
        "one": rig.load(port, "ns", connections=1, seconds=seconds, pid=pid),
        "streams": rig.load(port, "s_20", connections=64, seconds=seconds + 1, pid=pid, stream=True),
        "dense": rig.load(port, "s_5", connections=64, seconds=seconds, pid=pid, stream=True),
        "long": rig.load(port, "64k", connections=64, seconds=seconds, pid=pid),
        "memory": memory(pid) if pid is not None else None,
    }


def sides(rig: Rig, seconds: float, policy: str | None, routers: Sequence[Side]) -> dict[str, Any]:
    """The figures of each side."""
    found: dict[str, Any] = {}
    with rig.upstreams() as upstreams:
        found["direct"] = metered(lambda: measure(rig, upstreams[0], None, seconds))
        port = free_port()
        with gateway(["bench.lane.bare", str(port), str(upstreams[0])], "ready") as process:
            found["bare"] = metered(lambda: measure(rig, port, process.pid, seconds))
        port = free_port()
        words = ["--placement", policy] if policy is not None else []
        with gateway([*ours(port, upstreams), *words], "Penstock is ready") as process:
            found["penstock"] = metered(lambda: measure(rig, port, process.pid, seconds))
        targets = [Upstream(f"http://127.0.0.1:{one}", "", "") for one in upstreams]
        for side in routers:
            ports = Ports(free_port(), free_port())
            body = rig.bodies["ns"].read_bytes()
            with router(side.command(targets, ports), ports.main, body) as process:
                found[side.name] = metered(partial(measure, rig, ports.main, process.pid, seconds))
    return found


def metered(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` measures, and the share of the machine's CPU that others used meanwhile."""
    meter = CpuMeter()
    found = work()
    found["foreign"] = meter.read().foreign
    return found


def growth(rig: Rig) -> dict[str, float]:
    """Resident memory (MiB) at first, after many requests, and after many clients that left."""
    port = free_port()
    with rig.upstreams() as upstreams, gateway(ours(port, upstreams), "Penstock is ready") as process:
        rig.load(port, "ns", connections=64, seconds=2)
        rig.load(port, "s_5", connections=64, seconds=2, stream=True)
        rig.load(port, "64k", connections=64, seconds=2)
        first, done = memory(process.pid), 0
        while done < _REQUESTS:
            done += rig.load(port, "ns", connections=64, seconds=10)["done"]
        after = memory(process.pid)
        leave(port, rig.bodies["s_20"].read_bytes())
        time.sleep(1.0)
        return {"first": first, "requests": after, "disconnects": memory(process.pid)}


def leave(port: int, body: bytes) -> None:
    """Be ten thousand clients that go away: half of them before the first byte, half in the middle of a stream."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}"
    )
    request = head.encode() + b"\r\n\r\n" + body
    for _ in range(_LEAVERS // _AT_ONCE):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(_AT_ONCE)]
        for client in clients:
            client.sendall(request)
        for client in clients[::2]:
            client.recv(4096)
        for client in clients:
            client.close()


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lane", description=__doc__)
    parser.add_argument("--rig", type=Path, default=Path("../shared/rig"), help="the folder with the rig's sources")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--placement", help="the gateway's placement policy; default: its own")
    parser.add_argument(
        "--sglang-router", metavar="PYTHON", help="the Python that has sglang-router; default: without it"
    )
    parser.add_argument("--vllm-router", metavar="PYTHON", help="the Python that has vllm-router; default: without it")
    parser.add_argument("--note", metavar="TEXT", help="what should be known of the circumstances; it goes on the page")
    parser.add_argument("--policy", default="cache_aware", help="those routers' policy; default: cache_aware")
    parser.add_argument(
        "--memory", action="store_true", help="measure the growth of memory instead, beside figures that are there"
    )
    parser.add_argument(
        "--out", type=Path, default=_RESULTS / "lane.json", help="where figures go; a table beside them"
    )
    args = parser.parse_args()
    asked = ((vllm_router, args.vllm_router), (sglang_router, args.sglang_router))
    others = [make(python, args.policy) for make, python in asked if python is not None]
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if args.memory and "sides" not in found:
        parser.error(f"{args.out} has no figures of the sides: measure them first")
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(args.rig, Path(folder))
        if args.memory:
            found["growth"] = metered(lambda: growth(rig)) | {"date": _today()}
        else:
            found |= {
                "date": _today(),
                "machine": describe().__dict__,
                "versions": {name: version_of(name) for name in ("uvicorn", "uvloop", "httptools", "msgspec")}
                | {"python": sys.version.split()[0]}
                | {side.package: version(side) for side in others},
                "note": args.note or "",
                "sides": sides(rig, args.seconds, args.placement, others),
            }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    table = markdown(found)
    args.out.with_suffix(".md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
