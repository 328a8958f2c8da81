"""`scheduler.fairness`: turns, charges, classes, and what is passed over."""

from typing import Any

from scheduler.batch import Request
from scheduler.blocks import BlockPool, chain_hashes, root_hash
from scheduler.config import SchedulerConfig
from scheduler.fairness import Line
from scheduler.request import PREFILL
from tests.scheduler.simulation import make_request


def make_line(**settings: Any) -> Line[Request]:
    return Line(SchedulerConfig(**settings), BlockPool(100, 4))


def serve(line: Line[Request], most: int, admit: int = 10**9, slice_size: int = 10**9) -> list[int]:
    """The uids in the order in which they are served in one step, each ``slice_size`` tokens, ``admit`` of them new."""
    order = []
    for request in line.order(0.0, list(line.partials.values()), 1e-4):
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
    line = make_line(fairness=False, prefix_order=False)
    for uid in range(5):
        line.add(make_request(uid, 100, tenant=str(uid % 2)))
    assert line.waiting == 5
    assert serve(line, 9) == [0, 1, 2, 3, 4]
    assert line.waiting == 0 and not line.partials


def test_a_turn_lasts_a_quantum() -> None:
    line = make_line(quantum=250)
    for uid in range(10):
        line.add(make_request(uid, 100, tenant="a" if uid < 6 else "b"))
    assert serve(line, 20) == [0, 1, 2, 6, 7, 8, 3, 4, 9, 5]


def test_a_long_prompt_yields_to_other_tenants_between_slices() -> None:
    line = make_line(quantum=100)
    line.add(make_request(0, 1000, tenant="a"))
    line.add(make_request(1, 50, tenant="b"))
    assert serve(line, 1, slice_size=100) == [0]
    assert serve(line, 1, slice_size=100) == [1]
    assert serve(line, 1, slice_size=100) == [0]


def test_urgent_classes_come_first_whatever_is_owed() -> None:
    line = make_line(quantum=10)
    for uid in range(6):
        line.add(make_request(uid, 100, tenant="ab"[uid % 2], priority=uid // 2))
    assert serve(line, 9) == [4, 5, 2, 3, 0, 1]


def test_who_holds_blocks_goes_on_when_nobody_can_be_admitted() -> None:
    line = make_line(quantum=100)
    for uid, tenant in enumerate("abc"):
        line.add(make_request(uid, 500, tenant=tenant))
    assert serve(line, 2, slice_size=100) == [0, 1]
    # The next in turn is the third tenant, which finds no room; the others still prefill.
    assert sorted(serve(line, 9, admit=0, slice_size=100)) == [0, 1]


def test_output_is_charged_while_others_wait() -> None:
    line = make_line(quantum=100)
    a, b = make_request(0, 50, tenant="a"), make_request(1, 50, tenant="b")
    line.add(a)
    line.add(b)
    assert serve(line, 9) == [0, 1]
    idle = line.contended
    line.add(make_request(2, 50, tenant="a"))
    line.add(make_request(3, 50, tenant="b"))
    assert (idle, line.contended) == (False, True)
    for _ in range(100):
        line.charge_output(a)
    assert serve(line, 9) == [3, 2]


def test_what_is_computed_again_is_not_paid_for_again() -> None:
    line = make_line(quantum=100)
    a, b = make_request(0, 99, tenant="a"), make_request(1, 99, tenant="b")
    line.add(a)
    line.add(b)
    line.add(make_request(2, 99, tenant="a"))
    assert serve(line, 1) == [0]
    a.computed, a.preemptions, a.state = 0, 1, 0
    line.put_back(a)
    # Back at the front of its tenant's queue, free of charge, so the tenant's turn goes on.
    assert serve(line, 3) == [0, 2, 1]


def test_tenants_are_forgotten_when_they_have_nothing_live() -> None:
    line = make_line()
    requests = [make_request(uid, 10, tenant=str(uid)) for uid in range(50)]
    for request in requests:
        line.add(request)
    serve(line, 20)
    for request in requests:
        line.remove(request)
    assert not line.contended and line.waiting == 0 and not line.partials
    assert line._tenants == {} and line._rings == {}


def test_the_longest_prefix_first_and_the_oldest_among_equals() -> None:
    pool = BlockPool(100, 4)
    line: Line[Request] = Line(SchedulerConfig(), pool)
    tokens = list(range(40))
    hashes = chain_hashes(tokens, 4, root_hash("", ""))
    pool.publish(pool.allocate(10), hashes, 0, 10, tokens)
    for uid, shared in enumerate([0, 4, 40, 0, 20]):
        request = make_request(uid, 0, tokens=[*tokens[:shared], *[1000 + uid] * 40])
        request.hashes = chain_hashes(request.tokens, 4, root_hash("", ""))
        line.add(request)
    assert serve(line, 9) == [2, 4, 1, 0, 3]


def test_waiting_outweighs_a_prefix_in_the_end() -> None:
    pool = BlockPool(100, 4)
    tokens = list(range(40))
    hashes = chain_hashes(tokens, 4, root_hash("", ""))
    pool.publish(pool.allocate(10), hashes, 0, 10, tokens)
    # A prefix of 40 tokens saves 4 ms: as much as 20 ms of waiting.
    for waited, first in ((0.019, 1), (0.021, 0)):
        line: Line[Request] = Line(SchedulerConfig(), pool)
        line.add(make_request(0, 40, arrival=-waited))
        cached = make_request(1, 0, tokens=[*tokens, 7])
        cached.hashes = hashes
        line.add(cached)
        assert next(line.order(0.0, [], 1e-4)).uid == first


def test_more_than_a_window_can_be_served_in_one_step() -> None:
    line = make_line(window=4)
    for uid in range(11):
        line.add(make_request(uid, 10))
    assert serve(line, 20) == list(range(11))


def test_the_least_served_goes_on_first_when_closed() -> None:
    line = make_line(quantum=100)
    for uid, tenant in enumerate("ab"):
        line.add(make_request(uid, 900, tenant=tenant))
    serve(line, 1, slice_size=300)
    serve(line, 1, slice_size=100)
    line.is_open = False
    assert [request.uid for request in line.order(0.0, [], 1e-4)] == [1, 0]
