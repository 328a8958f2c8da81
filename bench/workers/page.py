"""How does a simulated worker say how busy it is? As vLLM does on its Prometheus page, under vLLM's names."""

from typing import Final

from bench.workers.live import LiveWorker

_GAUGES: Final = {
    "vllm:num_requests_running": "Requests that hold KV.",
    "vllm:num_requests_waiting": "Requests that hold none yet.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache that is held, 0 to 1.",
    "penstock_simulated_waiting_tokens": "Prompt tokens that are still to be computed.",
}
_COUNTERS: Final = {
    "vllm:prompt_tokens_total": "Prompt tokens of admitted requests.",
    "vllm:generation_tokens_total": "Tokens drawn.",
    "vllm:prefix_cache_queries_total": "Prompt tokens that were looked for in the prefix cache.",
    "vllm:prefix_cache_hits_total": "Prompt tokens that were found in the prefix cache.",
    "vllm:num_preemptions_total": "Requests that lost their KV to others.",
    "penstock_simulated_steps_total": "Steps that were run.",
    "penstock_simulated_lost_seconds_total": "By how much the process was too late to simulate what it should.",
}


def page(worker: LiveWorker, model: str) -> bytes:
    """The page, in Prometheus' text format."""
    load = worker.load
    values = {
        "vllm:num_requests_running": load.running,
        "vllm:num_requests_waiting": load.waiting,
        "vllm:kv_cache_usage_perc": load.kv_used / load.kv_total,
        "penstock_simulated_waiting_tokens": load.waiting_tokens,
        "vllm:prompt_tokens_total": load.prompt_tokens_total,
        "vllm:generation_tokens_total": load.output_tokens_total,
        "vllm:prefix_cache_queries_total": load.prompt_tokens_total,
        "vllm:prefix_cache_hits_total": load.cached_tokens_total,
        "vllm:num_preemptions_total": load.preemptions_total,
        "penstock_simulated_steps_total": load.steps_total,
        "penstock_simulated_lost_seconds_total": worker.lost,
    }
    labels = f'{{engine="0",model_name="{_escaped(model)}"}}'
    lines: list[str] = []
    for kind, names in (("gauge", _GAUGES), ("counter", _COUNTERS)):
        for name, meaning in names.items():
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", f"{name}{labels} {float(values[name])}"]
    size = worker.block_size
    lines += [
        "# HELP vllm:cache_config_info The KV cache's size.",
        "# TYPE vllm:cache_config_info gauge",
        f'vllm:cache_config_info{{block_size="{size}",engine="0",num_gpu_blocks="{load.kv_total // size}"}} 1.0',
    ]
    return ("\n".join(lines) + "\n").encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
