"""What can be told to ``penstock serve``? One frozen struct; each field carries its own meaning.

The command line is made from the struct: a field's description is its ``--help`` text, and the same text is what the
documentation is tested against. Importing this module is cheap.
"""

import argparse
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta

from engine.link import parse_address
from scheduler.policies import Policy

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "bfloat16", "float32"]
Quantization = Literal["none", "int8", "fp8"]
KvDtype = Literal["auto", "fp8"]
ToolParser = Literal["auto", "none", "hermes", "llama3", "mistral"]
ReasoningParser = Literal["auto", "none", "think"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class SettingsError(ValueError):
    """A setting that makes no sense; the message names it and says what would."""


def parse_size(text: str) -> int:
    """Bytes of ``2GiB``, ``500MB``, ``1.5G`` or a plain number.

    Raises:
        ValueError: the text is no size above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise ValueError(f"{text!r} is no size above 0: write 2GiB, 500MB or a number of bytes")
    return size


_SECONDS_OF: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_seconds(text: str) -> float:
    """Seconds of ``1.5``, ``1.5s``, ``200ms``, ``10m``, ``6h`` or ``30d``.

    Raises:
        ValueError: the text is no duration of 0 or more.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|h|d)?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is no duration: write 1.5, 1.5s, 200ms, 10m, 6h or 30d")
    return float(match[1]) / 1000 if match[2] == "ms" else float(match[1]) * _SECONDS_OF[match[2] or "s"]


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text.strip()):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def parse_share(text: str) -> float:
    """A number above 0 and at most 1, or a percentage.

    Raises:
        ValueError: the text is none.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError(f"{text!r} is no share: write a number above 0 and at most 1, such as 0.9")
    return value


def parse_part(text: str) -> float:
    """A number from 0 to 1, or a percentage.

    Raises:
        ValueError: the text is none.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is no part of a whole: write a number from 0 to 1, such as 0.01, or 1%")
    return value


_SIZE: Final[dict[str, Any]] = {"metavar": "SIZE", "parse": parse_size}
_SECONDS: Final[dict[str, Any]] = {"metavar": "SECONDS", "parse": parse_seconds}
_TOKENS: Final[dict[str, Any]] = {"metavar": "TOKENS", "parse": _whole}
_COUNT: Final[dict[str, Any]] = {"metavar": "N", "parse": _whole}

_POSITIVE: Final = (
    "max_model_len",
    "max_running",
    "kv_memory",
    "block_size",
    "threads",
    "max_queue",
    "max_body",
    "max_file",
    "batch_concurrency",
    "replicas",
    "gateway_processes",
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``penstock serve`` can be told. Sizes are in bytes, times in seconds.

    None means that the part concerned decides, and says what it chose.

    Raises:
        SettingsError: on construction, when a value makes no sense.
    """

    model: Annotated[
        str | None,
        Meta(
            description="a folder in Hugging Face format, or a hub id; default: Penstock's demo model",
            extra={"metavar": "MODEL", "positional": True},
        ),
    ] = None
    config: Annotated[
        str | None,
        Meta(
            description="a YAML file with the models and targets to serve, instead of MODEL, --worker and --upstream; "
            "SIGHUP and POST /admin/reload have it read again",
            extra={"metavar": "FILE"},
        ),
    ] = None
    host: Annotated[str, Meta(description="the address to listen on; 0.0.0.0 means every interface")] = "127.0.0.1"
    port: Annotated[
        int,
        Meta(description="the port to listen on; 0 takes a free one, which is printed", extra={"parse": _whole}),
    ] = 8000
    served_model_name: Annotated[
        str | None,
        Meta(description="the model's name for clients; default: that of its folder", extra={"metavar": "NAME"}),
    ] = None
    engine: Annotated[
        Literal["native", "vllm"],
        Meta(description="what runs the model: Penstock's own engine, or vLLM, which must be installed"),
    ] = "native"
    vllm_python: Annotated[
        str | None,
        Meta(
            description="the Python that has vLLM, where it lives in an environment of its own; default: the one that "
            "runs Penstock",
            extra={"metavar": "FILE"},
        ),
    ] = None
    vllm_args: Annotated[
        str | None,
        Meta(
            description="more of vLLM's own engine arguments, as a JSON object",
            extra={"metavar": "JSON"},
        ),
    ] = None
    adapter: Annotated[
        tuple[str, ...],
        Meta(
            description="with --engine vllm: load this LoRA adapter (a folder in PEFT's format) into every worker, and "
            "serve it under a name of its own; may be given several times",
            extra={"metavar": "NAME=FOLDER", "repeat": True},
        ),
    ] = ()
    device: Annotated[Device, Meta(description="where the model runs; auto takes a GPU where there is one")] = "auto"
    dtype: Annotated[
        Dtype,
        Meta(description="the type of weights and KV cache; auto is bfloat16"),
    ] = "auto"
    quantization: Annotated[
        Quantization,
        Meta(
            description="round weights, and what they are multiplied with, to 8 bits when the model is loaded: int8 on "
            "a CPU, fp8 on a GPU of compute capability 8.9 or higher; about half the memory and up to twice as fast, "
            "for a little accuracy"
        ),
    ] = "none"
    max_model_len: Annotated[
        int | None,
        Meta(description="most tokens of a request, prompt plus answer; default: the model's own", extra=_TOKENS),
    ] = None
    max_running: Annotated[
        int | None,
        Meta(description="most requests computed in one step; default: the worker's own limit", extra=_COUNT),
    ] = None
    kv_memory: Annotated[
        int | None,
        Meta(description="memory for the KV cache, such as 2GiB; default: by what is free", extra=_SIZE),
    ] = None
    kv_dtype: Annotated[
        KvDtype,
        Meta(
            description="the type of the KV cache; auto is dtype, fp8 holds twice the tokens, on a GPU of compute "
            "capability 8.9 or higher, for a little accuracy"
        ),
    ] = "auto"
    gpu_memory: Annotated[
        float | None,
        Meta(
            description="share of a GPU's memory that the worker takes in all, such as 0.9; default: the worker's own",
            extra={"metavar": "SHARE", "parse": parse_share},
        ),
    ] = None
    block_size: Annotated[
        int | None,
        Meta(description="tokens in a KV cache block, the unit of prefix reuse; default: the worker's", extra=_TOKENS),
    ] = None
    threads: Annotated[
        int | None, Meta(description="threads for the model's arithmetic; default: every core", extra=_COUNT)
    ] = None
    ttft: Annotated[
        float | None,
        Meta(description="when a first token is due after its request; default: the worker's own", extra=_SECONDS),
    ] = None
    tpot: Annotated[
        float | None,
        Meta(description="when each token is due after the one before; default: the worker's own", extra=_SECONDS),
    ] = None
    replicas: Annotated[
        int,
        Meta(description="workers to run on this machine, each with its part of the cores, or a GPU", extra=_COUNT),
    ] = 1
    worker: Annotated[
        tuple[str, ...],
        Meta(
            description="instead of running the model here, use this worker, which was started with penstock worker: "
            "tcp://HOST:PORT or unix:PATH; may be given several times, for workers of one model or of several",
            extra={"metavar": "ADDRESS", "repeat": True},
        ),
    ] = ()
    gateway_processes: Annotated[
        int,
        Meta(
            description="gateway processes that share the port and the workers, where one core can't take the load",
            extra=_COUNT,
        ),
    ] = 1
    worker_secret_env: Annotated[
        str | None,
        Meta(
            description="the environment variable with the secret that workers on other hosts were given; it never "
            "goes over the wire",
            extra={"metavar": "NAME"},
        ),
    ] = None
    worker_tls_ca: Annotated[
        str | None,
        Meta(
            description="speak TLS with workers on other hosts, whose certificates one in this file (PEM) has signed",
            extra={"metavar": "FILE"},
        ),
    ] = None
    worker_timeout: Annotated[
        float,
        Meta(
            description="how long a worker may give no sign of life, of which there are four a second, before it is "
            "taken for lost and others go on with what it had",
            extra=_SECONDS,
        ),
    ] = 5.0
    failover_timeout: Annotated[
        float,
        Meta(
            description="how long requests wait for a worker to come back when there is none, before they are "
            "answered 503",
            extra=_SECONDS,
        ),
    ] = 15.0
    placement: Annotated[
        Policy,
        Meta(
            description="how one of several workers is chosen for a request: held lets requests wait in the gateway "
            "until a worker is about to have nothing to do, and goes by caches and work"
        ),
    ] = "held"
    max_wait: Annotated[
        float | None,
        Meta(
            description="answer 429 at once to a request whose first token can't be there within so long; default: it "
            "may wait",
            extra=_SECONDS,
        ),
    ] = None
    max_queue: Annotated[
        int,
        Meta(description="most requests that may wait for their first token; one more is answered 429", extra=_COUNT),
    ] = 4096
    max_body: Annotated[
        int, Meta(description="largest body of a request, such as 32MiB; a larger one is answered 413", extra=_SIZE)
    ] = 32 * 2**20
    tool_parser: Annotated[
        ToolParser,
        Meta(description="how the model writes tool calls; auto finds it in the chat template"),
    ] = "auto"
    reasoning_parser: Annotated[
        ReasoningParser,
        Meta(description="how the model marks its reasoning; auto finds it in the chat template and the tokenizer"),
    ] = "auto"
    data_dir: Annotated[
        str | None,
        Meta(
            description="where uploaded files and batches are kept, by one server at a time; default: penstock in "
            "$XDG_STATE_HOME, or in ~/.local/state without it",
            extra={"metavar": "FOLDER"},
        ),
    ] = None
    max_file: Annotated[
        int, Meta(description="largest upload, such as 8GiB; a larger one is answered 413", extra=_SIZE)
    ] = 8 * 2**30
    batch_concurrency: Annotated[
        int, Meta(description="most requests of batches that are under way at a time", extra=_COUNT)
    ] = 64
    upstream: Annotated[
        tuple[str, ...],
        Meta(
            description="pass requests through to this OpenAI-compatible server instead of running a model: "
            "http://HOST:PORT, or dns:NAME:PORT for every address of a name; where it publishes KV cache events over "
            "ZeroMQ, followed in the same argument by kv=tcp://HOST:PORT and, if it replays them, by "
            "replay=tcp://HOST:PORT (* for the upstream's own host); may be given several times",
            extra={"metavar": "URL", "repeat": True},
        ),
    ] = ()
    upstream_file: Annotated[
        str | None,
        Meta(
            description="a file with upstreams, one a line or a JSON list of strings; it is watched, and they come "
            "and go with it",
            extra={"metavar": "FILE"},
        ),
    ] = None
    upstream_api_key_env: Annotated[
        str | None,
        Meta(
            description="the environment variable with the key that upstreams want; default: without --api-key-env, "
            "clients' own keys go on to them",
            extra={"metavar": "NAME"},
        ),
    ] = None
    upstream_tokenizer: Annotated[
        str | None,
        Meta(
            description="a folder with the tokenizer and the chat template of upstreams that publish KV cache events; "
            "default: they are asked for the tokens of prompts, as vLLM can be",
            extra={"metavar": "FOLDER"},
        ),
    ] = None
    upstream_continue: Annotated[
        Literal["auto", "always", "never"],
        Meta(
            description="let another upstream go on with a stream whose upstream broke off: auto where upstreams are "
            "vLLM or Penstock, always where they are others that return token ids and accept them as prompts"
        ),
    ] = "auto"
    upstream_connect_timeout: Annotated[
        float, Meta(description="how long a connection to an upstream may take", extra=_SECONDS)
    ] = 5.0
    upstream_first_byte_timeout: Annotated[
        float, Meta(description="how long an upstream may take to begin its answer", extra=_SECONDS)
    ] = 300.0
    upstream_idle_timeout: Annotated[
        float, Meta(description="how long an upstream may be silent within an answer", extra=_SECONDS)
    ] = 120.0
    hedge: Annotated[
        float | None,
        Meta(
            description="send at most this share of requests, such as 0.02, to a second upstream too, if the first has "
            "not begun its answer when 19 of 20 would have; default: none",
            extra={"metavar": "SHARE", "parse": parse_share},
        ),
    ] = None
    api_key_env: Annotated[
        str | None,
        Meta(
            description="the environment variable with the keys, separated by commas, of which clients must send one; "
            "default: everybody may ask",
            extra={"metavar": "NAME"},
        ),
    ] = None
    drain_timeout: Annotated[
        float,
        Meta(description="how long running requests may take to finish after SIGTERM or Ctrl-C", extra=_SECONDS),
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="least weighty lines to log; debug adds request fields that mean nothing here"),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Meta(
            description="how lines are logged; json: an object with time, level, logger and message, and, where they "
            "are known, request and trace"
        ),
    ] = "text"
    record: Annotated[
        str | None,
        Meta(
            description="keep a record of every request in this folder, which penstock log reads; default: none",
            extra={"metavar": "FOLDER"},
        ),
    ] = None
    record_content: Annotated[
        Literal["full", "redacted", "hash", "none"],
        Meta(
            description="with --record, what is kept of what is said: redacted is without e-mail addresses, card "
            "numbers and the like, hash only shows that equal texts are equal"
        ),
    ] = "full"
    otlp: Annotated[
        str | None,
        Meta(
            description="send traces and metrics to this OpenTelemetry collector, over HTTP, such as "
            "http://127.0.0.1:4318; default: where OTEL_EXPORTER_OTLP_ENDPOINT says, or nowhere",
            extra={"metavar": "URL"},
        ),
    ] = None
    trace_sample: Annotated[
        float | None,
        Meta(
            description="keep this share of the traces that begin here, such as 0.01; clients that send a traceparent "
            "say so themselves; default: what OTEL_TRACES_SAMPLER_ARG says, or 0.01",
            extra={"metavar": "SHARE", "parse": parse_part},
        ),
    ] = None
    kv_events: Annotated[
        str | None,
        Meta(
            description="publish the worker's KV cache events here over ZeroMQ, such as tcp://127.0.0.1:5557",
            extra={"metavar": "ENDPOINT"},
        ),
    ] = None
    kv_replay: Annotated[
        str | None,
        Meta(
            description="answer requests for missed KV cache events here over ZeroMQ, such as tcp://127.0.0.1:5558",
            extra={"metavar": "ENDPOINT"},
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.engine not in ("native", "vllm"):
            raise SettingsError(f"--engine {self.engine} is unknown: it is native or vllm")
        if self.engine == "native":
            for name in ("vllm_python", "vllm_args"):
                if getattr(self, name) is not None:
                    raise SettingsError(f"{flag(name)} needs --engine vllm")
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"--port must be between 0 and 65535, not {self.port}")
        if self.model is not None and not self.model.strip():
            raise SettingsError("MODEL is empty; leave it out to serve the demo model")
        if self.served_model_name is not None and not self.served_model_name.strip():
            raise SettingsError("--served-model-name is empty")
        if self.data_dir is not None and not self.data_dir.strip():
            raise SettingsError("--data-dir is empty; leave it out to use the default")
        if self.record is not None and not self.record.strip():
            raise SettingsError("--record is empty; leave it out to keep no record")
        if self.record is None and self.record_content != "full":
            raise SettingsError("--record-content needs --record, the folder that records are kept in")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{flag(name)} must be at least 1, not {value}")
        if self.worker:
            _check_workers(self)
        if self.adapter:
            _check_adapters(self)
        for name in ("ttft", "tpot", "worker_timeout", "max_wait"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{flag(name)} must be a number of seconds above 0, not {value:g}")
        if self.trace_sample is not None and not 0 <= self.trace_sample <= 1:
            raise SettingsError(f"--trace-sample must be from 0 to 1, not {self.trace_sample:g}")
        if self.gpu_memory is not None and not 0 < self.gpu_memory <= 1:
            raise SettingsError(f"--gpu-memory must be above 0 and at most 1, not {self.gpu_memory:g}")
        if not 0 <= self.failover_timeout < math.inf:
            raise SettingsError(f"--failover-timeout must be a number of seconds, not {self.failover_timeout:g}")
        if not 0 <= self.drain_timeout < math.inf:
            raise SettingsError(f"--drain-timeout must be a number of seconds, 0 or more, not {self.drain_timeout:g}")
        for name in ("upstream_connect_timeout", "upstream_first_byte_timeout", "upstream_idle_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{flag(name)} must be a number of seconds above 0, not {getattr(self, name):g}")
        if self.upstream or self.upstream_file:
            _check_upstreams(self.upstream)
        if self.kv_replay is not None and self.kv_events is None:
            raise SettingsError("--kv-replay needs --kv-events: there is nothing to replay without it")

    @property
    def merged_adapter(self) -> str | None:
        """The folder of the adapter that the workers started here merge into their weights, if they do that."""
        if self.engine != "native" or self.worker or not self.adapter:
            return None
        return parse_adapter(self.adapter[0])[1]


def _check_upstreams(upstreams: tuple[str, ...]) -> None:
    from gateway.fleet.upstream.sources import parse_source

    for one in upstreams:
        try:
            parse_source(one)
        except ValueError as error:
            raise SettingsError(f"--upstream {error}") from None


def parse_adapter(text: str) -> tuple[str, str]:
    """Name and folder of ``NAME=FOLDER``.

    Raises:
        SettingsError: it is something else.
    """
    name, _, folder = text.partition("=")
    if not name.strip() or not folder.strip():
        raise SettingsError(f"--adapter {text!r} is none: write NAME=FOLDER, such as legal=./adapters/legal")
    return name, folder


def _check_adapters(settings: "Settings") -> None:
    names = [parse_adapter(one)[0] for one in settings.adapter]
    if settings.merged_adapter is None and (len(set(names)) < len(names) or settings.served_model_name in names):
        raise SettingsError("--adapter: each adapter needs a name of its own")


def _check_workers(settings: Settings) -> None:
    for address in settings.worker:
        try:
            parse_address(address)
        except ValueError as error:
            raise SettingsError(f"--worker {error}") from None
    if len(set(settings.worker)) < len(settings.worker):
        raise SettingsError("--worker: the same worker was named twice")
    if settings.replicas > 1:
        raise SettingsError("--replicas are workers that are started here; leave it out beside --worker")


def flag(field: str) -> str:
    """How ``field`` is written on the command line."""
    return f"--{field.replace('_', '-')}"


def descriptions() -> dict[str, str]:
    """Each field's meaning, by its name: what ``--help`` and the documentation say."""
    return {name: meta.description or "" for name, (_, meta) in _annotations().items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Put every field of `Settings` on ``parser``."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
    for name, (kind, meta) in _annotations().items():
        extra = meta.extra or {}
        default = defaults[name]
        options: dict[str, Any] = {"help": meta.description, "default": default}
        if extra.get("positional"):
            parser.add_argument(name, nargs="?", metavar=extra["metavar"], **options)
            continue
        if extra.get("repeat"):
            parser.add_argument(flag(name), action="append", metavar=extra["metavar"], help=meta.description)
            continue
        if default is not None:
            options["help"] = f"{meta.description} (default: {_shown(name, default)})"
        choices = getattr(kind, "__args__", ()) if getattr(kind, "__origin__", None) is Literal else ()
        if choices:
            options["choices"] = choices
        else:
            options["metavar"] = extra.get("metavar", name.upper())
            options["type"] = _argument(extra.get("parse", str))
        parser.add_argument(flag(name), **options)


def from_args(args: argparse.Namespace) -> Settings:
    """The settings in ``args``, as `add_arguments` defined them.

    Raises:
        SettingsError: a value makes no sense.
    """
    found: dict[str, Any] = {name: getattr(args, name) for name in Settings.__struct_fields__}
    for name in ("upstream", "worker", "adapter"):
        found[name] = tuple(found[name] or ())
    return Settings(**found)


def _annotations() -> dict[str, tuple[Any, Meta]]:
    hints = get_type_hints(Settings, include_extras=True)
    return {name: (hints[name].__origin__, hints[name].__metadata__[0]) for name in Settings.__struct_fields__}


def _shown(name: str, default: object) -> str:
    unit = {"max_body": "MiB", "max_file": "GiB"}.get(name)
    return f"{default // parse_size(f'1{unit}')}{unit}" if unit and isinstance(default, int) else f"{default}"


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked
