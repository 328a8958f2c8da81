"""``python -m bench.lane``: measures the pass-through lane, and writes the tables.

Three sides, one after the other: the upstream itself, a proxy that does the least (`bench.lane.bare`), and the gateway
with key check, placement over eight upstreams, usage counting and metrics on. ``--memory`` adds a million requests and
ten thousand clients that leave.
"""

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.lane.report import markdown
from bench.lane.rig import KEY, Rig, free_port, gateway, memory, ours
from bench.machine import CpuMeter, describe, version_of

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


def sides(rig: Rig, seconds: float, policy: str | None) -> dict[str, Any]:
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lane", description=__doc__)
    parser.add_argument("--rig", type=Path, default=Path("../shared/rig"), help="the folder with the rig's sources")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--placement", help="the gateway's placement policy; default: its own")
    parser.add_argument("--memory", action="store_true", help="measure the growth of memory as well; takes minutes")
    parser.add_argument(
        "--out", type=Path, default=_RESULTS / "lane.json", help="where figures go; a table beside them"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(args.rig, Path(folder))
        found: dict[str, Any] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": describe().__dict__,
            "versions": {name: version_of(name) for name in ("uvicorn", "uvloop", "httptools", "msgspec")}
            | {"python": sys.version.split()[0]},
            "sides": sides(rig, args.seconds, args.placement),
        }
        if args.memory:
            found["growth"] = growth(rig)
        elif args.out.exists() and "growth" in (before := json.loads(args.out.read_text())):
            found["growth"] = before["growth"]
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    table = markdown(found)
    args.out.with_suffix(".md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
