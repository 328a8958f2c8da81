"""`scheduler.placement.queue`: the order of those that wait is that of a sort at any moment."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.placement.queue import Queue, Waiting
from scheduler.placement.turns import Turns
from tests.scheduler.placement.fleets import job

ENTRIES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from("xyz"), st.floats(0.0, 20.0), st.floats(0.0, 9.0)), max_size=30
)


@given(ENTRIES, st.sets(st.integers(0, 29)), st.floats(0.0, 1.0), st.lists(st.floats(0.0, 9.0), max_size=3))
def test_the_order_is_that_of_a_sort(
    entries: list[tuple[int, str, float, float]], gone: set[int], ageing: float, given_: list[float]
) -> None:
    turns = Turns(2.0)
    queue = Queue(ageing, turns)
    waiting = []
    for number, (priority, tenant, work, arrival) in enumerate(entries):
        one = Waiting(job(number, 10, priority=priority, tenant=tenant, arrival=arrival), number)
        one.work = work
        turns.joined(tenant)
        queue.add(one)
        waiting.append(one)
    for number, seconds in zip(sorted(gone), [*given_, *[0.0] * 30], strict=False):
        if number < len(entries):
            queue.remove(waiting[number])
            turns.left(waiting[number].job.tenant, seconds)
    left = [one for one in waiting if one.number not in gone]
    least = turns.least()

    def place(one: Waiting) -> tuple[int, int, float, int]:
        credit = one.work + ageing * one.job.arrival
        return -one.job.priority, turns.ahead(one.job.tenant, least), credit, one.number

    assert list(queue.ordered()) == sorted(left, key=place)
