"""How is a simulated worker started? ``penstock bench worker`` and its options."""

import argparse
import asyncio
import contextlib
import gc
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bench.workers.live import Setting
    from engine.events import KvEventPublisher

_MACHINE: Final = "h200/llama-3.1-8b"
_EPILOG: Final = """\
examples:
  penstock bench worker --port 9001
  penstock bench worker --port 9002 --speed 2 --kv-tokens 200000 --kv-events tcp://127.0.0.1:5557
  penstock serve --upstream http://127.0.0.1:9001 --upstream http://127.0.0.1:9002"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put what ``penstock bench worker`` takes on ``parser``."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_where(parser)
    add = parser.add_argument_group("what it simulates").add_argument
    add(
        "--machine",
        default=_MACHINE,
        metavar="NAME",
        help="how long steps take: a name or a file, as `penstock bench simulate --machine` has them "
        f"(default: {_MACHINE})",
    )
    add(
        "--speed",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="so many times as fast as that; deadlines are as much shorter (default: 1)",
    )
    add("--kv-tokens", type=int, metavar="N", help="its KV cache holds; default: the machine's")
    add("--block-size", type=int, default=16, metavar="TOKENS", help="of a KV block (default: 16)")
    add(
        "--max-model-len",
        type=int,
        default=131_072,
        metavar="TOKENS",
        help="prompt and answer together; longer requests are refused (default: 131072)",
    )
    add(
        "--token-bytes",
        type=int,
        default=4,
        metavar="N",
        help="bytes of text that are a token, 2 to 8 (default: 4); the words of `penstock bench run` have 5",
    )
    add(
        "--scheduling",
        default="ours",
        metavar="NAME",
        help="as `penstock bench simulate --scheduling` has it: ours, fcfs-8192, … (default: ours)",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting of the scheduler, such as max_running=64 or fairness=off; may be repeated",
    )


def _add_where(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where it answers").add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen at (default: 127.0.0.1)")
    add("--port", type=int, default=0, metavar="N", help="the port; 0: a free one, which it prints (default: 0)")
    add("--model", default="simulated", metavar="NAME", help="the model's name for clients (default: simulated)")
    add("--kv-events", metavar="ENDPOINT", help="publish KV events there, as vLLM does, such as tcp://127.0.0.1:5557")
    add("--kv-replay", metavar="ENDPOINT", help="replay KV events there to those who missed some")


def run(args: argparse.Namespace) -> int:
    """Answer until SIGTERM or Ctrl-C; the exit status."""
    import uvloop

    try:
        if args.kv_replay is not None and args.kv_events is None:
            raise ValueError("--kv-replay needs --kv-events: there is nothing to replay without it")
        setting = _setting(args)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(args, setting))
    except (ValueError, OverflowError) as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(str(error), 1)


def _setting(args: argparse.Namespace) -> "Setting":
    from bench.simulate.machines import find
    from bench.simulate.settings import changed, scheduling
    from bench.workers.live import Setting, with_kv

    if args.block_size < 1:
        raise ValueError(f"--block-size must be at least 1, not {args.block_size}")
    return Setting(
        machine=with_kv(find(args.machine), args.kv_tokens),
        config=changed(scheduling(args.scheduling), args.set),
        speed=args.speed,
        block_size=args.block_size,
        max_len=args.max_model_len,
        token_bytes=args.token_bytes,
    )


async def _serve(args: argparse.Namespace, setting: "Setting") -> int:
    from bench.workers.live import LiveWorker
    from bench.workers.server import Service, listen
    from engine.events import KvEventPublisher

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.ExitStack() as closing:
        publisher = None
        if args.kv_events is not None:
            publisher = KvEventPublisher(args.kv_events, args.kv_replay)
            closing.callback(publisher.close)
            _serve_replays(loop, publisher)
        worker = LiveWorker(setting, loop, publisher)
        closing.callback(worker.close)
        service = Service(worker, args.model)
        server = await listen(service, args.host, args.port)
        closing.callback(server.close)
        gc.collect()
        gc.freeze()
        host, port = server.sockets[0].getsockname()[:2]
        size, machine = setting.block_size, setting.machine
        print(
            f"Simulated worker is ready: http://{host}:{port}/v1 (model {args.model}, {machine.name} x "
            f"{setting.speed:g}, KV cache {machine.kv_tokens // size * size:,} tokens)",
            flush=True,
        )
        await stop.wait()
    return 0


def _serve_replays(loop: asyncio.AbstractEventLoop, publisher: "KvEventPublisher") -> None:
    """Answer requests for a replay as they come.

    The descriptor tells only of changes (it is edge-triggered), so a look now and then makes up for one missed while
    the sockets were in use.
    """
    descriptor = publisher.descriptor
    if descriptor is None:
        return
    loop.add_reader(descriptor, publisher.serve_replays)

    def look() -> None:
        publisher.serve_replays()
        loop.call_later(0.1, look)

    look()


def _fail(text: str, status: int) -> int:
    print(f"penstock bench worker: {text}", file=sys.stderr)
    return status
