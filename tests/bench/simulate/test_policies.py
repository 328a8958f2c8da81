"""`bench.simulate.policies`: each places as its name says."""

from bench.load.workload import Outline
from bench.simulate.policies import LeastOutstanding, MatchMinusLoad, PrefixHash, RoundRobin
from bench.simulate.prompts import Prompts
from bench.simulate.worker import Setting, SimRequest, SimWorker
from tests.bench.simulate.loads import MACHINE, listed, simulate

SETTING = Setting(machine=MACHINE)


def request(index: int, tokens: int, *blocks: int) -> SimRequest:
    return SimRequest(SETTING, Prompts(16), Outline(index, 0.0, tokens, 4, blocks), 0.0)


def workers(count: int = 3) -> list[SimWorker]:
    return [SimWorker(index, SETTING) for index in range(count)]


def test_round_robin_goes_around() -> None:
    policy, fleet = RoundRobin(), workers()
    assert [policy.place(request(index, 20), fleet, 0.0) for index in range(5)] == [0, 1, 2, 0, 1]


def test_least_outstanding_counts_tokens() -> None:
    fleet = workers()
    fleet[0].add(request(0, 500))
    fleet[1].add(request(1, 20))
    fleet[2].add(request(2, 100))
    assert LeastOutstanding().place(request(3, 20), fleet, 0.0) == 1


def test_prefix_hash_sends_equal_beginnings_to_one() -> None:
    policy, fleet = PrefixHash(), workers()
    placed = [policy.place(request(index, 2000, 7, 8, index), fleet, 0.0) for index in range(6)]
    assert len(set(placed)) == 1
    placed = [policy.place(request(index, 2000, 7, index), fleet, 0.0) for index in range(20)]
    assert set(placed) == {0, 1, 2}
    assert policy.place(request(0, 3), fleet, 0.0) in range(3)


def test_match_minus_load_prefers_the_cache_until_it_is_busy() -> None:
    _, _, fleet = simulate(listed(Outline(0, 0.0, 1024, 4, (1, 2))), workers=3, placement=RoundRobin())
    policy = MatchMinusLoad()
    assert policy.place(request(1, 1500, 1, 2), fleet.workers, 9.0) == 0
    fleet.workers[0].add(request(2, 3000))
    assert policy.place(request(3, 1500, 1, 2), fleet.workers, 9.0) == 1
