"""`scheduler.fairness`: turns, charges, classes, and what is passed over."""

from typing import Any

import pytest

from scheduler.batch import Request
from scheduler.blocks import BlockPool, chain_hashes, root_hash
from scheduler.config import SchedulerConfig
from scheduler.fairness import Line
from scheduler.request import PREFILL
from tests.scheduler.simulation import make_request


def seconds(start: int, count: int) -> float:
    """Of prefill, at 10,000 tokens/s."""
    return 1e-4 * count


def enqueue(line: Line[Request], request: Request) -> None:
    """Add a request as the scheduler does: what is cached, it doesn't owe."""
    request.owed = len(request.tokens) - min(4 * line._pool.probe(request.sought), request.prompt_len - 1)
    line.add(request)


def make_line(**settings: Any) -> Line[Request]:
    return Line(SchedulerConfig(**settings), BlockPool(100, 4))


def serve(line: Line[Request], most: int, admit: int = 10**9, slice_size: int = 10**9) -> list[int]:
    """The uids in the order in which they are served in one step, each ``slice_size`` tokens, ``admit`` of them new."""
    order = []
    for request in line.order(0.0, list(line.partials.values()), seconds):
        if request.state != PREFILL:
            if admit == 0:
                line.is_open = False
                continue
            admit -= 1
            request.state = PREFILL
            line.admitted(request, 0)
        count = min(slice_size, len(request.tokens) - request.computed)
        line.planned(request, count, request.computed + count == len(request.tokens))
        request.computed += count
        order.append(request.uid)
        if len(order) == most:
            break
    line.is_open = True
    return order


def test_first_come_first_served_without_policies() -> None:
    line = make_line(fairness=False, order="arrival")
    for uid in range(5):
        enqueue(line, make_request(uid, 100, tenant=str(uid % 2)))
    assert line.waiting == 5
    assert serve(line, 9) == [0, 1, 2, 3, 4]
    assert line.waiting == 0 and not line.partials


def test_a_turn_lasts_a_quantum() -> None:
    line = make_line(quantum=250)
    for uid in range(10):
        enqueue(line, make_request(uid, 100, tenant="a" if uid < 6 else "b"))
    assert serve(line, 20) == [0, 1, 2, 6, 7, 8, 3, 4, 9, 5]


def test_a_long_prompt_yields_to_other_tenants_between_slices() -> None:
    line = make_line(quantum=100)
    enqueue(line, make_request(0, 1000, tenant="a"))
    enqueue(line, make_request(1, 50, tenant="b"))
    assert serve(line, 1, slice_size=100) == [0]
    assert serve(line, 1, slice_size=100) == [1]
    assert serve(line, 1, slice_size=100) == [0]


def test_urgent_classes_come_first_whatever_is_owed() -> None:
    line = make_line(quantum=10)
    for uid in range(6):
        enqueue(line, make_request(uid, 100, tenant="ab"[uid % 2], priority=uid // 2))
    assert serve(line, 9) == [4, 5, 2, 3, 0, 1]


def test_who_holds_blocks_goes_on_when_nobody_can_be_admitted() -> None:
    line = make_line(quantum=100)
    for uid, tenant in enumerate("abc"):
        enqueue(line, make_request(uid, 500, tenant=tenant))
    assert serve(line, 2, slice_size=100) == [0, 1]
    # The next in turn is the third tenant, which finds no room; the others still prefill.
    assert sorted(serve(line, 9, admit=0, slice_size=100)) == [0, 1]


def test_output_is_charged_while_others_wait() -> None:
    line = make_line(quantum=100)
    a, b = make_request(0, 50, tenant="a"), make_request(1, 50, tenant="b")
    enqueue(line, a)
    enqueue(line, b)
    assert serve(line, 9) == [0, 1]
    idle = line.contended
    enqueue(line, make_request(2, 50, tenant="a"))
    enqueue(line, make_request(3, 50, tenant="b"))
    assert (idle, line.contended) == (False, True)
    for _ in range(100):
        line.charge_output(a)
    assert serve(line, 9) == [3, 2]


def test_what_is_computed_again_is_not_paid_for_again() -> None:
    line = make_line(quantum=100)
    a, b = make_request(0, 99, tenant="a"), make_request(1, 99, tenant="b")
    enqueue(line, a)
    enqueue(line, b)
    enqueue(line, make_request(2, 99, tenant="a"))
    assert serve(line, 1) == [0]
    a.computed, a.preemptions, a.state = 0, 1, 0
    line.put_back(a)
    # Back at the front of its tenant's queue, free of charge, so the tenant's turn goes on.
    assert serve(line, 3) == [0, 2, 1]


def test_tenants_are_forgotten_when_they_have_nothing_live() -> None:
    line = make_line()
    requests = [make_request(uid, 10, tenant=str(uid)) for uid in range(50)]
    for request in requests:
        enqueue(line, request)
    serve(line, 20)
    for request in requests:
        line.remove(request)
    assert not line.contended and line.waiting == 0 and not line.partials
    assert line._tenants == {} and line._rings == {}


def cached_line(tokens: list[int], **settings: Any) -> Line[Request]:
    """A line whose pool has ``tokens`` cached, in blocks of 4."""
    pool = BlockPool(100, 4)
    hashes = chain_hashes(tokens, 4, root_hash("", ""))
    pool.publish(pool.allocate(len(hashes)), hashes, 0, len(hashes), tokens)
    return Line(SchedulerConfig(**settings), pool)


def with_hashes(request: Request) -> Request:
    request.hashes = chain_hashes(request.tokens, 4, root_hash("", ""))
    return request


@pytest.mark.parametrize(("order", "served"), [("work", [2, 4, 1, 0, 3]), ("prefix", [2, 4, 1, 0, 3])])
def test_what_is_cached_goes_first_and_the_oldest_among_equals(order: str, served: list[int]) -> None:
    tokens = list(range(40))
    line = cached_line(tokens, order=order)
    for uid, shared in enumerate([0, 4, 40, 0, 20]):
        own = 40 if order == "prefix" else 80 - shared
        enqueue(line, with_hashes(make_request(uid, 0, tokens=[*tokens[:shared], *[1000 + uid] * own])))
    assert serve(line, 9) == served


@pytest.mark.parametrize(("order", "first"), [("work", 1), ("prefix", 0), ("arrival", 0)])
def test_the_least_left_to_compute_goes_first(order: str, first: int) -> None:
    tokens = list(range(40))
    line = cached_line(tokens, order=order)
    enqueue(line, with_hashes(make_request(0, 0, tokens=[*tokens, *[7] * 41])))
    enqueue(line, with_hashes(make_request(1, 40)))
    assert serve(line, 1) == [first]


def test_a_much_shorter_prompt_overtakes_one_that_has_begun() -> None:
    line = make_line(oldest_share=0.0)
    enqueue(line, make_request(0, 1000))
    assert serve(line, 1, slice_size=200) == [0]
    # 800 are left, and count as 400.
    enqueue(line, make_request(1, 500))
    enqueue(line, make_request(2, 399))
    assert serve(line, 4, slice_size=1000) == [2, 0, 1]


def test_the_longest_prompt_ends_beside_an_endless_stream_of_short_ones() -> None:
    line = make_line(oldest_share=0.1)
    longest = make_request(0, 2000)
    enqueue(line, longest)
    served = 0
    for uid in range(1, 1000):
        enqueue(line, make_request(uid, 100, arrival=uid))
        (chosen,) = serve(line, 1, slice_size=100)
        served += chosen == 0
        if longest.computed == 2000:
            break
    assert longest.computed == 2000
    # A tenth of what the others get; it went first at the beginning, when there was no other.
    assert uid / served == pytest.approx(10, rel=0.1)


def test_who_is_ahead_goes_after_all_others_of_the_class() -> None:
    line = make_line(quantum=1000)
    for uid in range(4):
        enqueue(line, make_request(uid, 4000, tenant="greedy"))
    assert serve(line, 3) == [0, 1, 2]
    assert not line.ahead("greedy"), "alone, nobody is"
    for uid, tenant in ((10, "b"), (11, "c")):
        enqueue(line, make_request(uid, 10, tenant=tenant))
    assert serve(line, 2) == [10, 11] and line.ahead("greedy")
    enqueue(line, make_request(12, 5000, tenant="b"))
    assert serve(line, 9) == [12, 3]


def test_more_than_a_window_can_be_served_in_one_step() -> None:
    line = make_line(window=4)
    for uid in range(11):
        enqueue(line, make_request(uid, 10))
    assert serve(line, 20) == list(range(11))


def test_the_least_served_goes_on_first_when_closed() -> None:
    line = make_line(quantum=100)
    for uid, tenant in enumerate("ab"):
        enqueue(line, make_request(uid, 900, tenant=tenant))
    serve(line, 1, slice_size=300)
    serve(line, 1, slice_size=100)
    line.is_open = False
    assert [request.uid for request in line.order(0.0, [], seconds)] == [1, 0]
