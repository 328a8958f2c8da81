"""What stores on a table must keep, in one process and on one host: the limits, in every order of events."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.traffic.limits.contract import Granted, Refused, Reservation, Standing, Verdict
from gateway.traffic.limits.counting import LocalStore, TableStore
from gateway.traffic.limits.limit import Account, Limits, Rate
from gateway.traffic.limits.shared import SharedStore
from gateway.traffic.limits.table import MICRO

START = 1_800_000_000.0
DAY = 86_400


def never(verdict: Verdict) -> None:
    """What a store has to call that can't decide at once."""
    raise AssertionError(verdict)


class Clock:
    """Microseconds since `START`, moved by tests."""

    def __init__(self) -> None:
        self.micro = 0

    def __call__(self) -> float:
        return (int(START) * MICRO + self.micro) / MICRO


class Bench:
    """One or several stores that count together, by a clock that stands still unless told."""

    def __init__(self, stores: list[TableStore], clock: Clock) -> None:
        self.stores = stores
        self.clock = clock

    def ask(self, account: Account, tokens: int = 0, store: int = 0) -> Verdict:
        verdict = self.stores[store % len(self.stores)].reserve((account,), tokens, never)
        assert verdict is not None
        return verdict

    def grant(self, account: Account, tokens: int = 0, store: int = 0) -> Reservation:
        verdict = self.ask(account, tokens, store)
        assert isinstance(verdict, Granted), verdict
        return verdict.reservation

    def refuse(self, account: Account, tokens: int = 0, store: int = 0) -> Refused:
        verdict = self.ask(account, tokens, store)
        assert isinstance(verdict, Refused), verdict
        return verdict

    def wait(self, seconds: float) -> None:
        self.clock.micro += round(seconds * MICRO)


@pytest.fixture(params=["local", "shared"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    clock = Clock()
    stores: list[TableStore] = (
        [LocalStore(clock)] if request.param == "local" else [SharedStore(tmp_path, clock) for _ in range(3)]
    )
    yield Bench(stores, clock)
    for store in stores:
        store.close()


def account(**limits: Rate | int) -> Account:
    return Account("team-a", Limits(**limits))  # type: ignore[arg-type]


def test_requests_come_back_at_their_rate(bench: Bench) -> None:
    it = account(requests=Rate(3, 60))
    for left in (2, 1, 0):
        verdict = bench.ask(it, store=left)
        assert isinstance(verdict, Granted)
        assert verdict.requests == Standing(3, left, (3 - left) * 20)
        verdict.reservation.settle(0)
    refused = bench.refuse(it)
    assert (refused.limited, refused.limit, refused.used, refused.asked) == ("requests", 3, 3, 1)
    assert refused.retry_after == 20
    assert refused.requests == Standing(3, 0, 60)
    bench.wait(19.999)
    bench.refuse(it)
    bench.wait(0.001)
    bench.grant(it, store=1)
    bench.refuse(it)


def test_tokens_are_held_until_they_are_settled_and_only_what_was_used_counts(bench: Bench) -> None:
    it = account(tokens=Rate(1000, 60))
    first = bench.grant(it, 600)
    refused = bench.refuse(it, 401, store=1)
    assert (refused.limited, refused.used, refused.asked) == ("tokens", 600, 401)
    bench.wait(30)
    assert bench.refuse(it, 401).used == 600  # what is held doesn't flow off
    first.settle(100)
    first.settle(100)
    verdict = bench.ask(it, 900, store=2)
    assert isinstance(verdict, Granted)
    assert verdict.tokens == Standing(1000, 0, 60)
    verdict.reservation.settle(0)
    bench.wait(6)
    bench.grant(it, 1000)


def test_a_request_larger_than_its_limit_is_never_granted(bench: Bench) -> None:
    assert bench.refuse(account(tokens=Rate(1000, 60)), 1001).retry_after == float("inf")
    assert bench.refuse(account(tokens_per_day=1000), 1001).retry_after == float("inf")


def test_who_used_more_than_was_reserved_pays_it_back_first(bench: Bench) -> None:
    it = account(tokens=Rate(1000, 10))
    bench.grant(it, 10).settle(3000)
    assert bench.refuse(it, 1000).retry_after == 30
    bench.wait(30)
    bench.grant(it, 1000)


def test_so_many_at_the_same_time(bench: Bench) -> None:
    it = account(concurrent=2)
    first, _ = bench.grant(it, store=0), bench.grant(it, store=1)
    assert bench.refuse(it, store=2).limited == "concurrent"
    first.settle(5)
    bench.grant(it, store=2)
    bench.refuse(it)


def test_a_days_tokens_come_back_at_midnight(bench: Bench) -> None:
    it = account(tokens_per_day=100)
    bench.grant(it, 60).settle(50)
    held = bench.grant(it, 50, store=1)
    refused = bench.refuse(it, 1)
    assert (refused.limited, refused.used) == ("day", 100)
    midnight = DAY - START % DAY
    assert refused.retry_after == midnight
    bench.wait(midnight)
    bench.refuse(it, 51)  # what is held then is the new day's
    held.settle(40)
    bench.grant(it, 60)


def test_all_accounts_or_none(bench: Bench) -> None:
    key, model = account(requests=Rate(10, 60)), Account("team-a/chat", Limits(concurrent=1))
    both = bench.stores[0].reserve((key, model), 0, never)
    assert isinstance(both, Granted)
    assert isinstance(bench.stores[0].reserve((key, model), 0, never), Refused)
    bench.grant(key)
    verdict = bench.ask(key)
    assert isinstance(verdict, Granted)
    assert verdict.requests == Standing(10, 7, 18)
    both.reservation.settle(0)
    assert isinstance(bench.stores[-1].reserve((key, model), 0, never), Granted)


def test_the_tighter_of_two_rates_is_told(bench: Bench) -> None:
    one, other = account(tokens=Rate(1000, 60)), Account("team-a/chat", Limits(tokens=Rate(500, 60)))
    verdict = bench.stores[0].reserve((one, other), 100, never)
    assert isinstance(verdict, Granted)
    assert verdict.tokens == Standing(500, 400, 12)
    assert verdict.requests is None


def test_limits_may_change_at_any_time(bench: Bench) -> None:
    for _ in range(5):
        bench.grant(account()).settle(100)
    bench.grant(account(requests=Rate(5, 60)))
    bench.wait(6)
    for _ in range(9):
        bench.grant(account(requests=Rate(10, 60)))
    assert bench.refuse(account(requests=Rate(9, 60))).limited == "requests"


def test_many_accounts(bench: Bench) -> None:
    accounts = [Account(f"key-{index}", Limits(concurrent=1)) for index in range(300)]
    for one in accounts:
        bench.grant(one)
    for index, one in enumerate(accounts):
        bench.refuse(one, store=index)


def test_a_clock_that_is_set_back_does_not_close_the_gates(bench: Bench) -> None:
    it = account(requests=Rate(1, 60))
    bench.grant(it)
    bench.wait(-7200)
    bench.refuse(it)
    bench.wait(60)
    bench.grant(it)


Action = tuple[int, int, int]  # what to do, with how much, at which store
actions = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=60
)  # 0: wait so many tenths; 1, 2: ask for so many tokens; 3: settle one that is open, which used so much


@given(actions=actions, requests=st.integers(1, 8), tokens=st.integers(20, 90), seconds=st.sampled_from([1, 7, 60]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_order_of_events_exceeds_a_limit(
    bench: Bench, actions: list[Action], requests: int, tokens: int, seconds: int
) -> None:
    limits = Limits(
        requests=Rate(requests, seconds), tokens=Rate(tokens, seconds), concurrent=3, tokens_per_day=4 * tokens
    )
    it = Account(f"{bench.clock.micro}", limits)
    bench.wait(DAY)  # what other examples used up is forgotten
    admitted: list[int] = []
    used: list[tuple[int, int]] = []
    running: list[Reservation] = []
    for what, amount, store in actions:
        now = bench.clock.micro
        if what == 0:
            bench.clock.micro += amount * MICRO // 10 + 1
        elif what == 3 and running:
            one = running.pop(amount % len(running))
            used.append((now, min(amount, one.tokens)))
            one.settle(used[-1][1])
        elif what in (1, 2):
            verdict = bench.ask(it, amount, store)
            held = sum(one.tokens for one in running)
            if isinstance(verdict, Granted):
                admitted.append(now)
                running.append(verdict.reservation)
                held += amount
            else:
                assert isinstance(verdict, Refused)
                assert verdict.used + verdict.asked > verdict.limit, "refused without need"
            _check(limits, admitted, used, len(running), held, now)
    for one in running:
        one.settle(0)


def _check(limits: Limits, admitted: list[int], used: list[tuple[int, int]], running: int, held: int, now: int) -> None:
    """In every time that ends now, no more was let through than was allowed. Times are in microseconds."""
    requests, tokens = limits.requests, limits.tokens
    assert requests is not None and tokens is not None and limits.tokens_per_day is not None
    assert limits.concurrent is not None and running <= limits.concurrent
    for start in admitted:
        count = sum(at >= start for at in admitted)
        assert count * requests.seconds * MICRO <= requests.amount * (requests.seconds * MICRO + now - start)
    for start in [now, *(at for at, _ in used)]:
        total = sum(amount for at, amount in used if at >= start) + held
        assert total * tokens.seconds * MICRO <= tokens.amount * (tokens.seconds * MICRO + now - start)
    assert (
        sum(amount for at, amount in used if at // (DAY * MICRO) == now // (DAY * MICRO)) + held
        <= (limits.tokens_per_day)
        or not held
    )
