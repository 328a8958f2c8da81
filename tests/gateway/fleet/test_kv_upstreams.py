"""What upstreams have cached is what the gateway believes: simulated workers that tell, all real processes."""

import asyncio
import random
import re
import subprocess
from pathlib import Path

from tests.gateway.fleet.processes import Serve
from tests.gateway.fleet.test_continuing_upstreams import url_of, worker
from tests.gateway.harness import Answer, read_answer, request_bytes, run

CHATS = 8
TURNS = 5
KV_TOKENS = 1600


class Chat:
    """A chat that begins with one of two system prompts and grows."""

    def __init__(self, number: int, draw: random.Random) -> None:
        system = f"{number % 2} " + "You are an engineer who builds hydroelectric plants. " * 12
        self.draw = draw
        self.messages = [{"role": "system", "content": system}]

    async def turn(self, port: int) -> Answer:
        words = " ".join(self.draw.choices(("water", "penstock", "turbine", "head", "flow"), k=60))
        self.messages.append({"role": "user", "content": words})
        body = {"model": "simulated", "messages": self.messages, "max_tokens": 12}
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes("POST", "/v1/chat/completions", body, {"connection": "close"}))
        answer = await read_answer(reader)
        writer.close()
        assert answer.status == 200
        self.messages.append(answer.json["choices"][0]["message"])
        return answer


async def by_upstream(served: Serve, name: str) -> dict[str, float]:
    page = (await served.ask({}, "/metrics")).body.decode()
    found = re.findall(rf'^penstock_upstream_{name}\{{upstream="(.+)"\}} (\S+)', page, re.M)
    return {upstream: float(value) for upstream, value in found}


def test_prefixes_are_found_where_they_are_believed_to_be(tmp_path: Path) -> None:
    async def scenario(workers: list["subprocess.Popen[str]"]) -> None:
        sources = [
            f"{url_of(process)} kv=ipc://{tmp_path}/e{number} replay=ipc://{tmp_path}/r{number}"
            for number, process in enumerate(workers)
        ]
        options = [word for source in sources for word in ("--upstream", source)]
        with Serve(*options, state=tmp_path) as served:
            while await served.metric("penstock_upstream_up") < 2:
                await asyncio.sleep(0.05)
            draw = random.Random(3)
            chats = [Chat(number, draw) for number in range(CHATS)]
            reported = computed = 0
            for _ in range(TURNS):
                for chat in draw.sample(chats, CHATS):  # one after the other, with time for its events
                    answer = await chat.turn(served.port)
                    usage = answer.json["usage"]
                    reported += usage["prompt_tokens_details"]["cached_tokens"]
                    computed += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
                    await asyncio.sleep(0.03)
            believed = await by_upstream(served, "believed_cached_tokens_total")
            found = await by_upstream(served, "found_cached_tokens_total")
            assert sum(found.values()) == reported > 10_000
            assert believed == found
            assert all(0 < blocks <= KV_TOKENS // 16 for blocks in (await by_upstream(served, "kv_blocks")).values())
            assert computed > 3 * KV_TOKENS, "blocks were evicted"
            assert await served.metric("penstock_upstream_kv_losses_total") == 0

    small = ("--kv-tokens", str(KV_TOKENS), "--speed", "20")
    first = worker(*small, "--kv-events", f"ipc://{tmp_path}/e0", "--kv-replay", f"ipc://{tmp_path}/r0")
    second = worker(*small, "--kv-events", f"ipc://{tmp_path}/e1", "--kv-replay", f"ipc://{tmp_path}/r1")
    with first, second:
        try:
            run(scenario([first, second]), 60)
        finally:
            first.kill()
            second.kill()
