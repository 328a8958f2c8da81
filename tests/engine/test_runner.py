"""Is a request's answer the same whatever else happens: neighbours, slices, cached prefixes, preemptions?"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import ModelConfig
from engine.host_runner import flatten
from engine.job import Job
from engine.link import Sampling
from engine.runner import Runner, kv_bytes_per_block
from scheduler.batch import Plan, Scheduler, SchedulerConfig, Slice
from tests.engine.driving import job, run
from tests.engine.families import RUNNERS, VOCABULARY, Pair, prompt, save

COUNT = 12


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=RUNNERS)
def runner(pair: Pair, request: pytest.FixtureRequest) -> Runner:
    runner = pair.runner(request.param, num_blocks=60)
    runner.warm_up()
    return runner


def test_neighbours_change_nothing(pair: Pair, runner: Runner) -> None:
    prompts = [prompt(seed, 3 + 5 * seed) for seed in range(6)]
    jobs = [job(uid, tokens, COUNT, arrival=float(uid % 3)) for uid, tokens in enumerate(prompts)]
    together = run(runner, jobs, num_blocks=60)
    assert [together.tokens[uid] for uid in range(6)] == [pair.greedy(tokens, COUNT) for tokens in prompts]


@pytest.mark.parametrize("budget", [1, 3, 7])
def test_slicing_of_the_prompt_changes_nothing(pair: Pair, runner: Runner, budget: int) -> None:
    tokens = prompt(11, 29)
    config = SchedulerConfig(time_budget=False, token_budget=budget, min_prefill_tokens=1)
    sliced = run(runner, [job(1, tokens, COUNT)], config=config)
    assert sliced.tokens[1] == pair.greedy(tokens, COUNT)
    assert sliced.steps >= 29 // budget + COUNT - 1


def test_a_cached_prefix_changes_nothing(pair: Pair, runner: Runner) -> None:
    shared = prompt(12, 21)
    prompts = [shared + prompt(seed, 4) for seed in (13, 14)]
    jobs = [job(uid, tokens, COUNT, arrival=20.0 * uid) for uid, tokens in enumerate(prompts)]
    result = run(runner, jobs)
    assert result.cached == 20
    assert [result.tokens[uid] for uid in range(2)] == [pair.greedy(tokens, COUNT) for tokens in prompts]


def test_preemption_changes_nothing(pair: Pair, runner: Runner) -> None:
    prompts = [prompt(seed, 10 + seed % 5) for seed in range(20, 25)]
    jobs = [job(uid, tokens, COUNT) for uid, tokens in enumerate(prompts)]
    config = SchedulerConfig(lookahead=False)
    result = run(runner, jobs, num_blocks=12, config=config)
    assert result.preemptions > 0
    assert [result.tokens[uid] for uid in range(5)] == [pair.greedy(tokens, COUNT) for tokens in prompts]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 10), st.integers(0, 12), st.booleans()), min_size=1, max_size=6
    ),
    blocks=st.integers(11, 24),
    budget=st.integers(1, 40),
    cancel=st.integers(0, 20),
)
def test_any_course_of_events_gives_the_same_tokens(
    runner: Runner, requests: list[tuple[int, int, int, bool]], blocks: int, budget: int, cancel: int
) -> None:
    """Random arrivals, lengths, slices and tiny pools, one cancelled on the way; seeded and greedy requests mixed."""

    def make(uid: int) -> Job:
        length, count, arrival, greedy = requests[uid]
        sampling = Sampling(max_tokens=count, temperature=0.0 if greedy else 0.8, top_p=0.9, top_k=50)
        # Prompts share prefixes: they begin with the same tokens.
        return job(uid, prompt(5, length), count, sampling=sampling, seed=uid * 977, arrival=float(arrival))

    def abort(scheduler: Scheduler[Job], plan: Plan[Job]) -> None:
        nonlocal cancel
        cancel -= 1
        if cancel == 0:
            scheduler.abort(0)

    config = SchedulerConfig(time_budget=False, token_budget=budget, min_prefill_tokens=1, lookahead=bool(budget % 2))
    mixed = run(runner, [make(uid) for uid in range(len(requests))], num_blocks=blocks, config=config, after_step=abort)
    for uid in range(len(requests)):
        alone = run(runner, [make(uid)]).tokens[uid]
        got = mixed.tokens.get(uid, [])
        assert got == (alone if uid else alone[: len(got)])


def test_seeds_reproduce_and_differ(runner: Runner) -> None:
    sampling = Sampling(max_tokens=COUNT, temperature=1.0)
    jobs = [job(uid, prompt(30, 9), COUNT, sampling=sampling, seed=seed) for uid, seed in enumerate((5, 6, 5))]
    tokens = run(runner, jobs).tokens
    assert tokens[0] == tokens[2] != tokens[1]
    alone = run(runner, [job(0, prompt(30, 9), COUNT, sampling=sampling, seed=5)]).tokens
    assert alone[0] == tokens[0]


def test_logprobs_are_those_of_transformers(pair: Pair, runner: Runner) -> None:
    tokens = prompt(31, 9)
    result = run(runner, [job(0, tokens, COUNT, sampling=Sampling(max_tokens=COUNT, temperature=1.3), seed=1)])
    drawn = result.tokens[0]
    expected = pair.logits(tokens + drawn)[8:-1].log_softmax(-1)
    own = expected[range(COUNT), drawn]
    torch.testing.assert_close(torch.tensor(result.logprobs[0]), own, rtol=1e-4, atol=2e-4)


def test_stop_tokens_wait_for_min_tokens(pair: Pair, runner: Runner) -> None:
    tokens = prompt(32, 9)
    stop = pair.greedy(tokens, 1)[0]
    sampling = Sampling(max_tokens=COUNT, temperature=0.0, min_tokens=4)
    ours = job(0, tokens, COUNT, sampling=sampling, stop_ids=frozenset({stop}))
    drawn = run(runner, [ours]).tokens[0]
    assert stop not in drawn[:4]
    stopped = run(runner, [job(0, tokens, COUNT, stop_ids=frozenset({stop}))]).tokens[0]
    assert stopped == [stop]


def test_flatten() -> None:
    first, second = job(0, [10, 11, 12, 13, 14], 1), job(1, [20, 21, 22], 1)
    first.blocks, second.blocks = [7, 3], [5]
    batch = flatten([Slice(first, 3, 2, True), Slice(second, 0, 2, False)], 4)
    assert batch.token_ids.tolist() == [13, 14, 20, 21]
    assert batch.positions.tolist() == [3, 4, 0, 1]
    assert batch.slots.tolist() == [31, 12, 20, 21]
    assert batch.query_starts.tolist() == [0, 2, 4]
    assert batch.context_lengths.tolist() == [5, 2]
    assert batch.block_tables.tolist() == [[7, 3], [5, 0]]
    assert batch.sampled.tolist() == [1]
    assert batch.slots.dtype == np.int64
    assert {array.dtype for array in (batch.token_ids, batch.positions, batch.block_tables)} == {np.dtype(np.int32)}


def test_a_step_in_which_nothing_samples(runner: Runner) -> None:
    ours = job(0, prompt(33, 9), 1)
    ours.blocks = [0, 1, 2]
    result = runner.execute(Plan([Slice(ours, 0, 4, False)], 0.0, [], None))  # type: ignore[arg-type]
    assert (result.tokens, result.logprobs, result.entropies) == ([], [], [])


def test_kv_bytes_per_block(pair: Pair) -> None:
    config = ModelConfig.load(pair.folder)
    # 3 layers, 2 KV heads: keys 24 x 16 (padded from 4), values 4 x 32 (padded from 24), 4 bytes each.
    assert kv_bytes_per_block(config, 4, torch.float32, torch.device("cpu")) == 3 * 2 * (24 * 16 + 4 * 32) * 4
    assert kv_bytes_per_block(config, 4, torch.bfloat16, torch.device("cuda")) == 3 * 2 * (24 * 4 + 4 * 24) * 2
    assert pair.judge.config.vocab_size == VOCABULARY
