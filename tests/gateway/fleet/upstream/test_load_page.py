"""What upstreams' own Prometheus pages say."""

import asyncio

import pytest

from gateway.fleet.upstream.load_page import parse
from gateway.fleet.upstream.target import UpstreamLoad
from tests.gateway.harness import run
from tests.gateway.lane.harness import lane, until
from tests.gateway.lane.upstream import Upstream

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="1000"} 1.0
vllm:num_requests_running_total{x="y"} 99.0
"""
SGLANG = b"""sglang:num_running_reqs{model_name="m"} 4.0
sglang:num_queue_reqs{model_name="m"} 1.0
sglang:token_usage{model_name="m"} 0.125
"""


@pytest.mark.parametrize(
    ("page", "load"),
    [
        (VLLM, UpstreamLoad(5.0, 7.0, 0.5, 16000)),
        (SGLANG, UpstreamLoad(4.0, 1.0, 0.125)),
        (b"vllm:num_requests_running 1e1\r\n", UpstreamLoad(10.0, 0.0, 0.0)),
        (b"process_cpu_seconds_total 3\n", None),
        (b"vllm:num_requests_waiting 3\n", None),
        (b"\xff\x00", None),
        (b"", None),
    ],
)
def test_known_lines_are_read(page: bytes, load: UpstreamLoad | None) -> None:
    assert parse(page) == load


def test_the_page_is_asked_for_and_counts_what_others_sent() -> None:
    async def scenario() -> None:
        async with Upstream() as busy, Upstream() as idle:
            busy.page = VLLM
            async with lane(busy, idle, load_every=0.05) as gateway:
                await until(lambda: gateway.target(busy).load is not None)
                assert gateway.target(busy).foreign == 12
                name = gateway.target(busy).name
                assert gateway.metric(f'penstock_upstream_waiting{{upstream="{name}"}}') == 7
                await asyncio.sleep(0.1)
                assert gateway.target(idle).load is None
                for _ in range(4):
                    await gateway.post({"model": "m", "messages": []})
                assert len(idle.requests) == 4

    run(scenario())
