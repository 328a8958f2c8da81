"""How busy does an upstream say it is? The few lines that are wanted of its Prometheus page, vLLM's or SGLang's."""

import re
from typing import Final

from gateway.fleet.upstream.target import UpstreamLoad

_NAMES: Final = {
    b"vllm:num_requests_running": "running",
    b"vllm:num_requests_waiting": "waiting",
    b"vllm:kv_cache_usage_perc": "kv_used",
    b"vllm:gpu_cache_usage_perc": "kv_used",
    b"sglang:num_running_reqs": "running",
    b"sglang:num_queue_reqs": "waiting",
    b"sglang:token_usage": "kv_used",
    b"penstock_worker_running": "running",
    b"penstock_worker_waiting": "waiting",
}
_LINE: Final = re.compile(
    rb"^(" + b"|".join(map(re.escape, _NAMES)) + rb")(?:\{.*\})? ([0-9.eE+-]+)(?: \d+)?\r?$", re.M
)
_KV: Final = re.compile(rb"^vllm:cache_config_info\{(.*)\} 1(?:\.0)?\r?$", re.M)
_BLOCKS: Final = re.compile(rb'num_gpu_blocks="(\d+)"')
_BLOCK_SIZE: Final = re.compile(rb'block_size="(\d+)"')


def parse(page: bytes) -> UpstreamLoad | None:
    """The load on a Prometheus ``page``; None if it has nothing that is known here.

    Several engines behind one address are one load: requests add up, and of KV caches the fullest counts.
    """
    found: dict[str, float] = {}
    for name, text in _LINE.findall(page):
        field = _NAMES[name]
        try:
            value = float(text)
        except ValueError:
            continue
        if field == "kv_used":
            found[field] = max(found.get(field, 0.0), min(max(value, 0.0), 1.0))
        else:
            found[field] = found.get(field, 0.0) + value
    if "running" not in found:
        return None
    return UpstreamLoad(found["running"], found.get("waiting", 0.0), found.get("kv_used", 0.0), _kv_tokens(page))


def _kv_tokens(page: bytes) -> int:
    """Tokens that the KV cache holds, where the page says so; else 0."""
    line = _KV.search(page)
    if line is None:
        return 0
    blocks, size = _BLOCKS.search(line[1]), _BLOCK_SIZE.search(line[1])
    return int(blocks[1]) * int(size[1]) if blocks and size else 0
