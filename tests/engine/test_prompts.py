"""Do scores of prompts and embeddings agree with transformers, whatever the slices and whoever is beside them?"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.job import Job
from engine.link import Pooling, PromptScores, Sampling
from engine.prompts import LastPooler, MeanPooler
from engine.runner import Runner
from scheduler.batch import Plan, Scheduler, SchedulerConfig
from tests.engine.driving import job, run
from tests.engine.families import RUNNERS, VOCABULARY, Pair, prompt, save

TOP = 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=RUNNERS)
def runner(pair: Pair, request: pytest.FixtureRequest) -> Runner:
    return pair.runner(request.param, num_blocks=80)


def scored(uid: int, tokens: list[int], top: int = TOP, count: int = 3) -> Job:
    return job(uid, tokens, count, sampling=Sampling(max_tokens=count, temperature=0.0, prompt_logprobs=top))


def embedded(uid: int, tokens: list[int], pooling: Pooling) -> Job:
    made = job(uid, tokens, 1, embed=pooling)
    made.max_len = made.limit = len(tokens) + 1
    return made


def sliced(budget: int) -> SchedulerConfig:
    return SchedulerConfig(time_budget=False, token_budget=budget, min_prefill_tokens=1)


def scores_of(job: Job) -> PromptScores:
    assert job.scorer is not None and job.scorer.done
    return job.scorer.result()


def check_scores(scores: PromptScores, pair: Pair, tokens: list[int]) -> None:
    """Against transformers' log-softmax of the same prompt."""
    expected = pair.logits(tokens)[:-1].log_softmax(-1)
    targets = torch.tensor(tokens[1:])
    rows = torch.arange(len(targets))
    own = torch.from_numpy(np.frombuffer(scores.logprobs, "<f4").copy())
    torch.testing.assert_close(own, expected[rows, targets], rtol=1e-4, atol=5e-4)
    ranks = np.frombuffer(scores.ranks, "<i4")
    judged = 1 + (expected > expected[rows, targets, None]).sum(-1)
    # Two tokens so close that rounding swaps them may swap their ranks too.
    assert np.abs(ranks - judged.numpy()).max() <= 1
    assert scores.top == TOP
    top = torch.from_numpy(np.frombuffer(scores.top_logprobs, "<f4").reshape(-1, TOP).copy())
    torch.testing.assert_close(top, expected.topk(TOP).values, rtol=1e-4, atol=5e-4)
    ids = torch.from_numpy(np.frombuffer(scores.top_tokens, "<i4").reshape(-1, TOP).astype(np.int64))
    torch.testing.assert_close(expected.gather(1, ids), top, rtol=1e-4, atol=5e-4)


def states(pair: Pair, tokens: list[int]) -> torch.Tensor:
    """transformers' hidden states after the final norm, [T, hidden]."""
    with torch.no_grad():
        result: torch.Tensor = pair.judge.model(torch.tensor([tokens])).last_hidden_state[0]
    return result


def check_embedding(job: Job, pair: Pair, tokens: list[int], pooling: Pooling) -> None:
    assert job.pooler is not None and job.pooler.done
    vector = torch.from_numpy(np.frombuffer(job.pooler.result(), "<f4").copy())
    expected = states(pair, tokens)
    torch.testing.assert_close(vector, expected.mean(0) if pooling == "mean" else expected[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("budget", [1, 5, 64, 300])
def test_scores_however_sliced(pair: Pair, runner: Runner, budget: int) -> None:
    tokens = prompt(1, 100)
    ours = scored(1, tokens)
    result = run(runner, [ours, job(2, prompt(2, 30), 4)], config=sliced(budget), num_blocks=80)
    check_scores(scores_of(ours), pair, tokens)
    assert result.tokens[1] == pair.greedy(tokens, 3)


def test_scores_need_no_cache_and_leave_one(pair: Pair, runner: Runner) -> None:
    tokens = prompt(3, 40)
    jobs = [job(1, tokens, 2), scored(2, tokens), job(3, tokens, 2)]
    for uid, one in enumerate(jobs):
        one.arrival = 20.0 * uid
    run(runner, jobs)
    assert [one.cached for one in jobs] == [0, 0, 36]
    check_scores(scores_of(jobs[1]), pair, tokens)


def test_scores_survive_preemption(pair: Pair, runner: Runner) -> None:
    prompts = [prompt(seed, 14 + seed % 5) for seed in range(40, 46)]
    jobs = [scored(uid, tokens, count=12) for uid, tokens in enumerate(prompts)]
    result = run(runner, jobs, num_blocks=18, config=SchedulerConfig(lookahead=False))
    assert result.preemptions > 0
    for ours, tokens in zip(jobs, prompts, strict=True):
        check_scores(scores_of(ours), pair, tokens)
        assert result.tokens[ours.uid] == pair.greedy(tokens, 12)


def test_scores_when_the_prompt_itself_is_preempted(pair: Pair, runner: Runner) -> None:
    """The least urgent request is in the middle of its prompt when it has to make room."""
    tokens = prompt(50, 60)
    ours = scored(1, tokens)
    ours.priority = -1
    others = [job(2 + i, prompt(51 + i, 40), 8, arrival=4.0) for i in range(2)]
    seen: list[int] = []

    def watch(scheduler: Scheduler[Job], plan: Plan[Job]) -> None:
        seen.extend(piece.start for piece in plan.slices if piece.request is ours)

    config = SchedulerConfig(time_budget=False, token_budget=10, min_prefill_tokens=1, lookahead=False)
    run(runner, [ours, *others], num_blocks=24, config=config, after_step=watch)
    assert seen.count(0) > 1, "it was to begin anew"
    check_scores(scores_of(ours), pair, tokens)


def test_a_prompt_of_one_token_has_no_scores(runner: Runner) -> None:
    ours = scored(1, [7])
    run(runner, [ours])
    assert scores_of(ours) == PromptScores(TOP, b"", b"", b"", b"")


def test_scores_of_the_prompts_tokens_alone(pair: Pair, runner: Runner) -> None:
    ours = scored(1, prompt(60, 20), top=0)
    run(runner, [ours])
    scores = scores_of(ours)
    assert (scores.top, scores.top_tokens, scores.top_logprobs) == (0, b"", b"")
    assert len(scores.logprobs) == len(scores.ranks) == 4 * 19


def test_the_likeliest_tokens_beside_each_drawn(pair: Pair, runner: Runner) -> None:
    tokens = prompt(61, 9)
    sampling = Sampling(max_tokens=8, temperature=1.5, top_k=3, top_logprobs=TOP, logit_bias={5: 50.0})
    beside = job(2, tokens, 8, sampling=Sampling(max_tokens=8, temperature=0.0, top_logprobs=1))
    result = run(runner, [job(1, tokens, 8, sampling=sampling, seed=4), beside, job(3, tokens, 8)])
    expected = pair.logits(tokens + result.tokens[1])[8:-1].log_softmax(-1)
    for place, top in enumerate(result.tops[1]):
        assert top is not None
        torch.testing.assert_close(torch.tensor(top.logprobs), expected[place].topk(TOP).values, rtol=1e-4, atol=5e-4)
        torch.testing.assert_close(expected[place][top.tokens], torch.tensor(top.logprobs), rtol=1e-4, atol=5e-4)
    assert [top.tokens for top in result.tops[2] if top] == [[token] for token in result.tokens[2]]
    assert result.tops[3] == [None] * 8


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wishes=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from(["mean", "last", "chat", "scores"]), st.integers(0, 6)),
        min_size=1,
        max_size=6,
    ),
    budget=st.integers(1, 80),
)
def test_embeddings_in_any_batch(pair: Pair, runner: Runner, wishes: list[tuple[int, str, int]], budget: int) -> None:
    """Prompts share prefixes, so that those who may read the cache do."""
    jobs = []
    for uid, (length, kind, arrival) in enumerate(wishes):
        tokens = prompt(70, length)
        made = scored(uid, tokens) if kind == "scores" else job(uid, tokens, 4)
        if kind == "mean" or kind == "last":
            made = embedded(uid, tokens, "mean" if kind == "mean" else "last")
        made.arrival = float(arrival)
        jobs.append(made)
    result = run(runner, jobs, config=sliced(budget), num_blocks=80)
    for uid, (length, kind, _) in enumerate(wishes):
        tokens = prompt(70, length)
        if kind == "mean" or kind == "last":
            check_embedding(jobs[uid], pair, tokens, "mean" if kind == "mean" else "last")
            assert uid not in result.tokens
        else:
            assert result.tokens[uid] == pair.greedy(tokens, len(result.tokens[uid]))
        if kind == "scores" and length > 1:
            check_scores(scores_of(jobs[uid]), pair, tokens)


def test_embeddings_survive_preemption(pair: Pair, runner: Runner) -> None:
    tokens = prompt(80, 60)
    poolings: tuple[Pooling, Pooling] = ("mean", "last")
    for pooling in poolings:
        ours = embedded(1, tokens, pooling)
        ours.priority = -1
        others = [job(2 + i, prompt(81 + i, 40), 8, arrival=4.0) for i in range(2)]
        config = SchedulerConfig(time_budget=False, token_budget=10, min_prefill_tokens=1, lookahead=False)
        run(runner, [ours, *others], num_blocks=24, config=config)
        assert ours.preemptions > 0
        check_embedding(ours, pair, tokens, pooling)


def test_only_those_who_need_every_state_shun_the_cache() -> None:
    assert MeanPooler.needs_all and not LastPooler.needs_all
    assert not embedded(1, [1, 2], "mean").reads_cache
    assert embedded(1, [1, 2], "last").reads_cache
    assert not scored(1, [1, 2]).reads_cache
    assert job(1, [1, 2], 1).reads_cache
    assert VOCABULARY
