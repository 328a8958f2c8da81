"""Is there a body that breaks the server? ``python -m tests.fuzz`` sends 100,000 and looks for 5xx, hangs and leaks.

Three sources, all from one seed: bodies that schemathesis makes from ``/openapi.json``, valid ones and such as break
the schema; mixtures and mutations of these, which reach further, since each field was made to be plausible by itself;
and raw bytes from hypothesis. They go to a real ``penstock serve`` with the demo model.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import httpx2
import psutil
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from tests.gateway.harness import read_answer, request_bytes
from tests.serving import Serving

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/batches",
    "/tokenize",
    "/detokenize",
)
MODEL = "penstock-demo"
HANG = 60.0
"""Seconds after which a request counts as one that is never answered; the context has 64 tokens."""
_CONNECTIONS = 24
_SEEDS_A_SOURCE = 40


class Body(NamedTuple):
    """What is sent, and where."""

    path: str
    data: bytes


class Report:
    """What came of it."""

    def __init__(self) -> None:
        self.statuses: collections.Counter[int] = collections.Counter()
        self.faults: list[tuple[Body, str]] = []
        self.leaks: list[str] = []

    @property
    def sent(self) -> int:
        return sum(self.statuses.values()) + len(self.faults)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} x {status}" for status, count in sorted(self.statuses.items()))
        lines = [f"{self.sent:,} bodies: {counts}; {len(self.faults)} faults, {len(self.leaks)} leaks", *self.leaks]
        lines += [f"{fault}: {body.path} {body.data[:2000]!r}" for body, fault in self.faults[:20]]
        return "\n".join(lines)


def plausible(page: dict[str, Any], each: int, chance: int) -> dict[str, list[Any]]:
    """Bodies for each path from schemathesis: ``each`` that fit the page and ``each`` that don't, decoded."""
    for schema in page["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": [MODEL]}
    spec = schemathesis.openapi.from_dict(page)
    found: dict[str, list[Any]] = {}
    for path in PATHS:
        bodies = found[path] = []
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            strategy = spec[path]["POST"].as_strategy(generation_mode=mode)
            bodies += [case.body for case in drawn(strategy, each, chance)]
    return found


def drawn(strategy: st.SearchStrategy[Any], count: int, chance: int) -> list[Any]:
    """``count`` examples of a strategy, the same ones each time."""
    found: list[Any] = []

    @seed(chance)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: Any) -> None:
        found.append(value)

    draw()
    return found


def encoded(value: Any) -> bytes:
    """A body as bytes, whatever schemathesis made it of."""
    if isinstance(value, bytes):
        return value
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError):
        return repr(value).encode("utf-8", "replace")


def bodies(page: dict[str, Any], count: int, chance: int) -> Iterator[Body]:
    """``count`` bodies: first schemathesis' own, then one in ten raw, the others mixtures."""
    rng = Random(chance)
    each = max(1, min(_SEEDS_A_SOURCE * 5, count // (len(PATHS) * 10)))
    seeds = plausible(page, each, chance)
    raw = drawn(st.binary(max_size=200), min(2000, count), chance)
    sent = 0
    for path, values in seeds.items():
        for value in values:
            if sent < count:
                sent += 1
                yield Body(path, encoded(value))
    while sent < count:
        sent += 1
        path = rng.choice(PATHS)
        if rng.random() < 0.1:
            yield Body(path, rng.choice(raw))
        else:
            yield Body(path, mixed(seeds[path], rng))


def mixed(values: Sequence[Any], rng: Random) -> bytes:
    """A body put together from the fields of several, now and then with something wrong in it."""
    objects = [value for value in values if isinstance(value, dict)]
    body: dict[str, Any] = dict(rng.choice(objects))
    for _ in range(rng.randint(0, 6)):
        donor = rng.choice(objects)
        if donor:
            field = rng.choice(list(donor))
            body[field] = donor[field]
    body["model"] = MODEL if rng.random() < 0.95 else rng.choice(["", "x", None, 5])
    if rng.random() < 0.6:
        _make_answerable(body, rng)
    if rng.random() < 0.3:
        _spoil(body, rng)
    data = bytearray(encoded(body))
    if rng.random() < 0.05:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.02 else bytes(data)


def _make_answerable(body: dict[str, Any], rng: Random) -> None:
    """Leave out what is refused most often, so that what is left gets as far as the worker."""
    share = rng.choice((0.5, 0.8, 0.95))
    for field in [field for field in body if field != "model" and rng.random() < share]:
        del body[field]
    text = rng.choice(["hi", "", "0 9", "\u00e9\U0001f44b" * 3, "x" * 300, "What is 7 + 5?"])
    body["prompt"] = body["input"] = text
    body["messages"] = [{"role": "user", "content": text}]
    body["max_tokens"] = rng.randint(1, 20)


def _spoil(body: dict[str, Any], rng: Random) -> None:
    odd: list[Callable[[], Any]] = [
        lambda: None,
        lambda: -1,
        lambda: 2**63,
        lambda: 1e308,
        lambda: "",
        lambda: [],
        lambda: {},
        lambda: [[[]]],
        lambda: "\ud800",
        lambda: True,
        lambda: "x" * 5000,
        lambda: [0] * 500,
        lambda: _deep(rng.randint(2, 300)),
    ]
    body[rng.choice([*body, "stop", "tools", "response_format", "logit_bias", "n", "stream"])] = rng.choice(odd)()


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}}
    return value


async def send_all(port: int, source: Iterator[Body], total: int, report: Report) -> None:
    """Send every body over some connections at a time, and note what comes back."""
    started = shown = time.monotonic()

    async def sender() -> None:
        nonlocal shown
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for body in source:
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", port)
                reader, writer = connection
                writer.write(request_bytes("POST", body.path, body.data, {"content-type": "application/json"}))
                async with asyncio.timeout(HANG):
                    answer = await read_answer(reader)
                if answer.status >= 500 or (b"event: error" in answer.body and b'"server_error"' in answer.body):
                    report.faults.append((body, f"{answer.status} {answer.body[-300:]!r}"))
                else:
                    report.statuses[answer.status] += 1
                if answer.headers.get("connection") == "close":
                    writer.close()
                    connection = None
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                report.faults.append((body, f"no answer: {error!r}"))
                connection = None
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                rate = report.sent / (shown - started)
                print(f"{report.sent:,} of {total:,}, {rate:.0f}/s, {len(report.faults)} faults", flush=True)
        if connection is not None:
            connection[1].close()

    await asyncio.gather(*(sender() for _ in range(_CONNECTIONS)))


class Held(NamedTuple):
    """What a server holds on to."""

    files: int
    megabytes: float


def held(server: Serving) -> Held:
    """What the gateway process holds now."""
    process = psutil.Process(server.process.pid)
    return Held(process.num_fds(), process.memory_info().rss / 2**20)


def settle(server: Serving, seconds: float = 20.0) -> list[str]:
    """Wait until nothing runs any more; what still does after a while is a leak."""
    deadline = time.monotonic() + seconds
    while True:
        left = {
            name: server.metric(f"penstock_{name}")
            for name in ("requests_queued", "worker_running", "worker_waiting", "worker_kv_used_tokens")
        }
        if not any(left.values()):
            return []
        if time.monotonic() > deadline:
            return [f"still {value:g} {name}" for name, value in left.items() if value]
        time.sleep(0.1)


def fuzz(count: int, chance: int, growth: float) -> Report:
    """Send ``count`` bodies to a server of our own; ``growth`` is how many MiB its gateway may grow by."""
    report = Report()
    with Serving("--max-model-len", "64", "--kv-memory", "64MiB", "--log-level", "error") as server:
        worker = server.worker().pid
        page = httpx2.get(f"{server.url}/openapi.json").json()
        source = bodies(page, count, chance)
        port = int(server.url.rpartition(":")[2])
        asyncio.run(send_all(port, islice(source, count // 5), count, report))
        before = held(server)
        asyncio.run(send_all(port, source, count, report))
        report.leaks += settle(server)
        after = held(server)
        if after.files > before.files + 2:
            report.leaks.append(f"{after.files} open files, {before.files} after a fifth of the bodies")
        if after.megabytes > before.megabytes + growth:
            report.leaks.append(f"{after.megabytes:.0f} MiB, {before.megabytes:.0f} after a fifth of the bodies")
        if server.worker().pid != worker:
            report.leaks.append("the worker died and was started again")
        print(f"gateway: {before} -> {after}")
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{server.url}/health/ready").status_code != 200:
                report.leaks.append("the server isn't ready any more")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=100_000, help="how many (default: 100,000)")
    parser.add_argument("--seed", type=int, default=1, help="another one makes others (default: 1)")
    options = parser.parse_args()
    started = time.monotonic()
    report = fuzz(options.bodies, options.seed, growth=150)
    print(f"{report}\n{time.monotonic() - started:.0f} s")
    return 1 if report.faults or report.leaks else 0


if __name__ == "__main__":
    sys.exit(main())
