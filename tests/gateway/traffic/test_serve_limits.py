"""Limits of a real server: several gateway processes that count together, and keys that change while it runs."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import httpx2

from gateway.traffic.keys import hash_key
from tests.gateway.harness import run
from tests.gateway.lane.upstream import Upstream
from tests.serving import Serving


def config(url: str, limits: str) -> str:
    return f"""
models: {{chat: {{target: remote}}}}
targets: {{remote: {{engine: openai, urls: ["{url}"], model: m}}}}
keys:
  - {{id: team-a, hash: "{hash_key(b"sk-one", "salt")}", limits: {limits}}}
  - {{id: admin, hash: "{hash_key(b"sk-two", "salt")}", admin: true}}
"""


def ask(serving: Serving, key: str = "sk-one") -> httpx2.Response:
    """One request on a connection of its own, so that any of the processes may get it."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    url = f"{serving.url}/v1/chat/completions"
    return httpx2.post(url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


def check(file: Path, url: str) -> None:
    file.write_text(config(url, "{requests: 8/h, tokens: 10k/h}"))
    with Serving("--config", str(file), "--gateway-processes", "2") as serving:
        answers = [ask(serving) for _ in range(12)]
        assert Counter(answer.status_code for answer in answers) == {200: 8, 429: 4}
        left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
        assert left == [7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0]
        used = 8 * 10  # what the upstream says of each
        assert int(answers[-1].headers["x-ratelimit-remaining-tokens"]) in range(10_000 - used, 10_080 - used)
        assert ask(serving, "sk-two").status_code == 200
        assert ask(serving, "sk-three").status_code == 401
        file.write_text(config(url, "{requests: 100/h}"))
        reloaded = httpx2.post(f"{serving.url}/admin/reload", headers={"authorization": "Bearer sk-two"}, timeout=60)
        assert reloaded.json() == {"changes": ["key team-a changed: limits"]}
        deadline = time.monotonic() + 20
        while (answer := ask(serving)).headers["x-ratelimit-limit-requests"] == "8" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (answer.status_code, answer.headers["x-ratelimit-limit-requests"]) == (200, "100")
        assert int(answer.headers["x-ratelimit-remaining-requests"]) <= 91  # what was used before still counts


def test_gateway_processes_count_together_and_keys_change_with_a_reload(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Upstream() as upstream:
            await asyncio.to_thread(check, tmp_path / "penstock.yaml", upstream.url)

    run(scenario(), timeout=100)
