"""What can be told to a worker when it starts?

The same options serve ``penstock worker`` and ``python -m engine``, which is how a gateway starts its own.
Importing this module is cheap: torch comes in only when `run` does.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from engine.link import parse_address

VLLM_START: Final = (
    *("-P", "-E", "-W", "ignore:resource_tracker:UserWarning"),
    str(Path(__file__).resolve().parent / "vllm" / "__main__.py"),
)
"""How a Python starts a worker whose engine is vLLM; the worker's options follow. See `engine.vllm.__main__`."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Sizes are in bytes, times in seconds; None means that the worker decides and says what it chose."""

    listen: str
    model: str | None = None
    adapter: str | None = None
    name: str | None = None
    engine: Literal["native", "vllm"] = "native"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    quantization: Literal["none", "int8", "fp8"] = "none"
    max_model_len: int | None = None
    max_running: int | None = None
    kv_memory: int | None = None
    kv_dtype: Literal["auto", "fp8"] = "auto"
    gpu_memory: float = 0.9
    block_size: int | None = None
    threads: int | None = None
    ttft: float = 1.0
    tpot: float = 0.05
    kv_events: str | None = None
    kv_replay: str | None = None
    secret_env: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    vllm_python: str | None = None
    vllm_args: str | None = None
    adapters: int = 0
    parent_pid: int | None = None


def parse_size(text: str) -> int:
    """Bytes of ``2GiB``, ``500MB``, ``1.5G`` or a plain number.

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is no size: write 2GiB, 500MB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put every option of `WorkerOptions` on ``parser``."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a folder in Hugging Face format, or a hub id; default: the demo model",
    )
    add(
        "--listen",
        metavar="ADDRESS",
        type=_address,
        required=True,
        help="where gateways connect: unix:/path/to.sock, or tcp://0.0.0.0:9100, which needs --secret-env",
    )
    add(
        "--adapter",
        metavar="FOLDER",
        help="a LoRA adapter in PEFT's format, a folder or a hub id: merge it into the model's weights when they are "
        "loaded, so that it costs nothing later; vLLM gets its adapters from the gateway instead",
    )
    add("--name", help="the model's name for clients; default: that of the adapter or the model's folder")
    add(
        "--engine",
        choices=["native", "vllm"],
        default="native",
        help="what runs the model: Penstock's own engine, or vLLM, which must be installed (default: native)",
    )
    add(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where the model runs (default: auto)",
    )
    add(
        "--dtype",
        choices=["auto", "bfloat16", "float32"],
        default="auto",
        help="of weights and KV cache (default: auto, which is bfloat16)",
    )
    add(
        "--quantization",
        choices=["none", "int8", "fp8"],
        default="none",
        help="round weights, and what they are multiplied with, to 8 bits when the model is loaded: int8 on a CPU, fp8 "
        "on a GPU of compute capability 8.9 or higher; about half the memory and up to twice as fast, for a little "
        "accuracy (default: none)",
    )
    add(
        "--max-model-len",
        metavar="TOKENS",
        type=_positive,
        help="longest prompt plus answer; default: the model's own",
    )
    add(
        "--max-running",
        metavar="N",
        type=_positive,
        help="most requests in one step; default: 128 on a CPU, 256 on a GPU",
    )
    add(
        "--kv-memory",
        metavar="SIZE",
        type=_size,
        help="of the KV cache, such as 2GiB; default: by what is free",
    )
    add(
        "--kv-dtype",
        choices=["auto", "fp8"],
        default="auto",
        help="of the KV cache: fp8 holds twice the tokens, on a GPU of compute capability 8.9 or higher, for a little "
        "accuracy (default: auto, which is --dtype)",
    )
    add(
        "--gpu-memory",
        metavar="SHARE",
        type=_share,
        default=0.9,
        help="of the GPU's memory, that the worker takes in all: weights, KV cache and what a step needs; --kv-memory "
        "goes first (default: 0.9)",
    )
    add("--block-size", metavar="TOKENS", type=_positive, help="of a KV cache block; default: 16, or vLLM's own")
    add("--threads", metavar="N", type=_positive, help="for the model's arithmetic; default: every core")
    add("--ttft", metavar="SECONDS", type=_seconds, default=1.0, help="when a first token is due (default: 1)")
    add(
        "--tpot",
        metavar="SECONDS",
        type=_seconds,
        default=0.05,
        help="when each further one is due (default: 0.05)",
    )
    add(
        "--kv-events",
        metavar="ENDPOINT",
        help="publish KV events here over ZeroMQ, such as tcp://127.0.0.1:5557",
    )
    add("--kv-replay", metavar="ENDPOINT", help="answer requests for missed KV events here")
    add(
        "--secret-env",
        metavar="NAME",
        help="the environment variable with the secret that gateways must know (their --worker-secret-env); it never "
        "goes over the wire",
    )
    add("--tls-cert", metavar="FILE", help="speak TLS with this certificate, in PEM with its chain")
    add("--tls-key", metavar="FILE", help="the certificate's key, in PEM; default: it is in the same file")
    add(
        "--vllm-python",
        metavar="FILE",
        help="with --engine vllm: the Python that has vLLM, where it lives in an environment of its own; default: the "
        "one that runs this",
    )
    add(
        "--vllm-args",
        metavar="JSON",
        help='with --engine vllm: more of vLLM\'s own engine arguments, such as {"tensor_parallel_size": 2}',
    )
    add(
        "--adapters",
        metavar="N",
        type=_positive,
        default=0,
        help="with --engine vllm: most LoRA adapters that one step may use; default: none, which is faster",
    )
    add(
        "--parent-pid",
        metavar="PID",
        type=_positive,
        help="stop when this process, which must be our parent, has gone",
    )


def from_args(args: argparse.Namespace) -> WorkerOptions:
    """The options in ``args``, as `add_arguments` defined them."""
    return WorkerOptions(**{field: getattr(args, field) for field in WorkerOptions.__slots__})


def run(args: argparse.Namespace) -> int:
    """Run a worker with the options in ``args``; returns its exit status."""
    if args.engine == "vllm" and args.adapter is not None:
        said = "--adapter is for Penstock's own engine: with --engine vllm, the gateway names them (its --adapter)"
        print(f"penstock: error: {said}; the worker needs --adapters N", file=sys.stderr)
        return 2
    if args.engine == "vllm":
        return _become_vllm(args.vllm_python or sys.executable)
    from engine.threads import bound_spinning

    bound_spinning()
    from engine.worker import run_worker

    return run_worker(from_args(args))


def _become_vllm(python: str) -> int:
    """Go on as the worker that vLLM has, with the words of our own command line."""
    words = sys.argv[2:] if sys.argv[1:2] == ["worker"] else sys.argv[1:]
    try:
        os.execv(python, [python, *VLLM_START, *words])
    except OSError as error:
        print(f"penstock: error: --vllm-python {python}: {error.strerror}", file=sys.stderr)
    return 1


def _address(text: str) -> str:
    try:
        parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write a number above 0 and at most 1, such as 0.9")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value
