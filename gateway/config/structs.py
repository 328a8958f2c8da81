"""What may stand in a configuration file? One struct for each section; what they don't have is refused.

Where a field means what an option of ``penstock serve`` does, its description is that option's.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from gateway.config.keys import ApiKey, Counting
from gateway.config.log import RequestLog
from gateway.config.models import EITHER, NOT_EMPTY, Model
from gateway.config.telemetry import Telemetry
from gateway.config.values import Count, Seconds, Share, Size, describe_value
from gateway.settings import (
    Device,
    Dtype,
    KvDtype,
    Quantization,
    ReasoningParser,
    ToolParser,
    descriptions,
)
from scheduler.policies import Policy

_OPTIONS: Final = descriptions()


def _as(option: str) -> Meta:
    return Meta(description=_OPTIONS[option])


class _Workers(msgspec.Struct, frozen=True, kw_only=True):
    """A model that workers compute which speak Penstock's own link."""

    model: Annotated[str | None, _as("model")] = None
    adapter: Annotated[
        str | None,
        Meta(
            description="serve the model with this LoRA adapter, a folder in PEFT's format: Penstock's own engine "
            "merges it into the weights when it loads them, vLLM computes it beside them"
        ),
    ] = None
    replicas: Annotated[Count, _as("replicas")] = 1
    workers: Annotated[
        tuple[str, ...],
        Meta(
            description="instead of running the model here, use these workers, which were started with penstock "
            "worker: tcp://HOST:PORT or unix:PATH"
        ),
    ] = ()
    secret_env: Annotated[str | None, _as("worker_secret_env")] = None
    tls_ca: Annotated[str | None, _as("worker_tls_ca")] = None
    device: Annotated[Device, _as("device")] = "auto"
    dtype: Annotated[Dtype, _as("dtype")] = "auto"
    quantization: Annotated[Quantization, _as("quantization")] = "none"
    max_model_len: Annotated[Count | None, _as("max_model_len")] = None
    max_running: Annotated[Count | None, _as("max_running")] = None
    kv_memory: Annotated[Size | None, _as("kv_memory")] = None
    kv_dtype: Annotated[KvDtype, _as("kv_dtype")] = "auto"
    gpu_memory: Annotated[Share | None, _as("gpu_memory")] = None
    block_size: Annotated[Count | None, _as("block_size")] = None
    threads: Annotated[
        Count | None,
        Meta(
            description="threads of each worker for the model's arithmetic; default: its part of the cores, which all "
            "workers that are started here divide",
        ),
    ] = None
    ttft: Annotated[Seconds | None, _as("ttft")] = None
    tpot: Annotated[Seconds | None, _as("tpot")] = None
    placement: Annotated[Policy, _as("placement")] = "held"
    max_wait: Annotated[Seconds | None, _as("max_wait")] = None
    tool_parser: Annotated[ToolParser, _as("tool_parser")] = "auto"
    reasoning_parser: Annotated[ReasoningParser, _as("reasoning_parser")] = "auto"
    kv_events: Annotated[str | None, _as("kv_events")] = None
    kv_replay: Annotated[str | None, _as("kv_replay")] = None


class NativeTarget(_Workers, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="engine", tag="native"):
    """A model on Penstock's own engine."""


class VllmTarget(_Workers, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="engine", tag="vllm"):
    """A model on vLLM, in a worker of ours."""

    vllm_python: Annotated[str | None, _as("vllm_python")] = None
    vllm_args: Annotated[
        dict[str, Any] | None, Meta(description="more of vLLM's own engine arguments, such as tensor_parallel_size: 2")
    ] = None


class OpenAITarget(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="engine", tag="openai"
):
    """OpenAI-compatible servers, any of which may answer what the others may."""

    urls: Annotated[
        tuple[str, ...],
        Meta(description="the servers: http://HOST:PORT, or dns:NAME:PORT for every address of a name"),
    ] = ()
    file: Annotated[str | None, _as("upstream_file")] = None
    kv_events: Annotated[
        tuple[str, ...],
        Meta(
            description="where the servers publish what they have cached, as vLLM does over ZeroMQ: tcp://HOST:PORT "
            "for each of urls, or one with * for the host, for all of them"
        ),
    ] = ()
    kv_replay: Annotated[
        tuple[str, ...], Meta(description="where they repeat what was missed of that, in the same way")
    ] = ()
    model: Annotated[
        str | None, Meta(description="what the servers call the model; default: the name that the client said")
    ] = None
    api_key_env: Annotated[str | None, _as("upstream_api_key_env")] = None
    tokenizer: Annotated[str | None, _as("upstream_tokenizer")] = None
    placement: Annotated[Policy, _as("placement")] = "held"

    @property
    def sources(self) -> tuple[str, ...]:
        """``urls``, each with where its KV events are, as the command line has them."""
        count = len(self.urls)
        each = ((" kv=", self.kv_events), (" replay=", self.kv_replay))
        said = [[word + one for one in (many * count)[:count]] for word, many in each if many]
        return tuple("".join(parts) for parts in zip(self.urls, *said, strict=True))


Target = NativeTarget | VllmTarget | OpenAITarget


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole file."""

    models: Annotated[
        dict[str, Annotated[Model, Meta(extra_json_schema=EITHER)]],
        Meta(description="the names that clients send", extra_json_schema=NOT_EMPTY),
    ]
    targets: Annotated[
        dict[str, Target],
        Meta(description="where answers come from, by names of their own", extra_json_schema=NOT_EMPTY),
    ]
    keys: Annotated[
        tuple[ApiKey, ...], Meta(description="who may ask; default: everybody", extra_json_schema=NOT_EMPTY)
    ] = ()
    log: Annotated[RequestLog | None, Meta(description="where requests are recorded; default: nowhere")] = None
    telemetry: Annotated[
        Telemetry | None, Meta(description="where traces and metrics go; default: nowhere, unless options say so")
    ] = None
    limits: Annotated[Counting, Meta(description="where the limits of keys are counted")] = Counting()


def schema() -> dict[str, Any]:
    """The JSON schema of a file, for editors."""
    made = msgspec.json.schema(Config, schema_hook=describe_value)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "penstock.yaml", **made}
