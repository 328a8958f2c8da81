"""Is a prompt's sketch what it should be, once, whoever is beside it and however the prompt was computed?"""

from typing import Any

import numpy as np
import pytest
import torch

from engine.job import Job
from engine.link import Sampling
from engine.runner import Runner
from engine.sketch import SIZE, Sketcher, projection
from scheduler.batch import SchedulerConfig
from tests.engine.driving import job, run
from tests.engine.families import RUNNERS, Pair, prompt, save


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture(params=RUNNERS)
def runner(pair: Pair, request: pytest.FixtureRequest) -> Runner:
    return pair.runner(request.param, num_blocks=80)


def sketched(uid: int, tokens: list[int], count: int = 3, **more: Any) -> Job:
    return job(uid, tokens, count, sketched=True, **more)


def expected(pair: Pair, tokens: list[int]) -> np.ndarray:
    """By transformers' hidden state after the final norm."""
    with torch.no_grad():
        state = pair.judge.model(torch.tensor([tokens])).last_hidden_state[0, -1]
    made: np.ndarray = state.float().numpy() @ projection(len(state))
    return made


def vector(data: bytes) -> np.ndarray:
    assert len(data) == 2 * SIZE
    return np.frombuffer(data, "<f2").astype(np.float32)


def check_low_margins(found: list[int], pair: Pair, tokens: list[int], answer: list[int]) -> None:
    states = pair.logits(tokens + answer)[len(tokens) - 1 : -1]
    first, second = states.softmax(-1).topk(2).values.T
    assert found == (first - second < 0.1).int().tolist()


def check_sketch(one: Job, pair: Pair, tokens: list[int]) -> None:
    assert vector(one.sketch) == pytest.approx(expected(pair, tokens), abs=4e-3, rel=2e-3)


def sliced(budget: int) -> SchedulerConfig:
    return SchedulerConfig(time_budget=False, token_budget=budget, min_prefill_tokens=1)


@pytest.mark.parametrize("budget", [9, 300])
def test_it_is_of_the_state_that_the_first_token_is_drawn_from(pair: Pair, runner: Runner, budget: int) -> None:
    """In slices and whole, beside others that want none, and where the cache has all but the end."""
    prompts = [prompt(1, 30), prompt(2, 9), prompt(1, 30), prompt(3, 1), prompt(1, 22)]
    jobs = [sketched(uid, tokens, arrival=4.0 * uid) for uid, tokens in enumerate(prompts)]
    others = [job(10 + uid, tokens, 3, arrival=3.0 * uid) for uid, tokens in enumerate(prompts[:2])]
    drawn = run(runner, jobs + others, config=sliced(budget), num_blocks=80).tokens
    for one, tokens in zip(jobs, prompts, strict=True):
        check_sketch(one, pair, tokens)
    assert drawn[0] == drawn[10] and drawn[1] == drawn[11], "whoever asks gets the same answer"
    assert jobs[2].cached > 0
    assert [other.sketch for other in others] == [b""] * len(others)


def test_it_survives_preemption(pair: Pair, runner: Runner) -> None:
    """Some lose their KV with an answer begun, whose end isn't the prompt's; one in the middle of its prompt."""
    prompts = [prompt(seed, 14 + seed % 5) for seed in range(40, 46)]
    jobs = [sketched(uid, tokens, 12) for uid, tokens in enumerate(prompts)]
    assert run(runner, jobs, num_blocks=18, config=SchedulerConfig(lookahead=False)).preemptions > 0
    for one, tokens in zip(jobs, prompts, strict=True):
        check_sketch(one, pair, tokens)
    late = sketched(1, prompt(50, 60))
    late.priority = -1
    config = SchedulerConfig(time_budget=False, token_budget=10, min_prefill_tokens=1, lookahead=False)
    others = [job(2 + i, prompt(51 + i, 40), 8, arrival=4.0) for i in range(2)]
    run(runner, [late, *others], num_blocks=24, config=config)
    assert late.preemptions > 0
    check_sketch(late, pair, prompt(50, 60))


def test_beside_edits_that_the_host_has_to_say(pair: Pair, runner: Runner) -> None:
    """Then the device draws without a graph, and later."""
    wish = Sampling(max_tokens=3, temperature=0.0, frequency_penalty=0.5, top_logprobs=2)
    jobs = [sketched(1, prompt(5, 12), sampling=wish), sketched(2, prompt(6, 8))]
    run(runner, jobs)
    check_sketch(jobs[0], pair, prompt(5, 12))
    check_sketch(jobs[1], pair, prompt(6, 8))


def test_the_first_token_may_be_the_last(pair: Pair, runner: Runner) -> None:
    one = sketched(1, prompt(7, 5), 1)
    run(runner, [one])
    check_sketch(one, pair, prompt(7, 5))


def test_nobody_pays_for_what_nobody_asks(pair: Pair, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Sketcher, hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(Sketcher, "sketch", fail)
    run(runner, [job(1, prompt(8, 20), 4), job(2, prompt(9, 3), 4)])
    with pytest.raises(AssertionError, match="nobody asked"):
        run(runner, [sketched(3, prompt(8, 20))])


def test_low_margins_are_the_models_own(pair: Pair, runner: Runner) -> None:
    tokens = prompt(61, 9)
    result = run(runner, [job(1, tokens, 12), job(2, prompt(62, 4), 12)])
    for uid, begin in ((1, tokens), (2, prompt(62, 4))):
        check_low_margins(result.low_margins[uid], pair, begin, result.tokens[uid])
    assert {margin for margins in result.low_margins.values() for margin in margins} == {0, 1}


def test_an_answer_that_goes_on_has_none() -> None:
    """Its last token isn't the prompt's."""
    made = Job(sampling=sketched(1, [1]).sampling, seed=0, uid=1, tokens=[1, 2, 3], answered=1, max_tokens=5,
               max_len=20, ttft=1.0, tpot=1.0, sketched=True)  # fmt: skip
    assert not made.sketched


def test_the_projection_is_the_same_for_ever_and_keeps_lengths() -> None:
    """Sketches of years ago are to be comparable: these numbers must not change."""
    made = projection(96)
    assert made.shape == (96, SIZE) and made.dtype == np.float32
    assert made[0, :3] == pytest.approx(FIRST, abs=1e-6)
    assert np.array_equal(made, projection(96))
    draw = np.random.default_rng(1)
    points = draw.normal(size=(200, 512))
    ratio = np.linalg.norm(points @ projection(512), axis=1) / np.linalg.norm(points, axis=1)
    assert abs(ratio.mean() - 1) < 0.02 and ratio.std() < 0.12  # 1 / sqrt(128) = 0.09


FIRST = (0.008731, -0.006083, -0.082468)


def test_states_that_no_float16_holds_are_cut(pair: Pair) -> None:
    sketcher = Sketcher(pair.runner("host")._model)  # type: ignore[attr-defined]
    sketcher._projection *= 1e7
    made = sketcher.sketch(torch.ones(2, sketcher._projection.shape[0]))
    assert made.isfinite().all() and made.abs().max() == 65504
