"""Does a GPU's runner, on CPU tensors, do what the host's does, with less said and nothing waited for?"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from engine.config import ModelConfig
from engine.device_queue import DeviceQueue
from engine.device_runner import TOP, DeviceLimits, DeviceRunner
from engine.link import Sampling
from engine.loader import load_model
from engine.runner import Runner
from scheduler.batch import SchedulerConfig
from tests.engine.driving import job, run
from tests.engine.families import Pair, prompt, save

T = TypeVar("T")
COUNT = 10
LIMITS = {"max_running": 6, "max_batch_tokens": 300, "max_model_len": 256}


class Watched(DeviceQueue):
    """Counts what was captured and replayed, keeps what was sent, and says how many results nobody has waited for."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.captured = self.replayed = 0
        self.sent: list[np.ndarray] = []
        self.waiting = self.most_waiting = 0

    def put(self, array: np.ndarray, into: torch.Tensor | None = None) -> torch.Tensor:
        self.sent.append(array.copy())
        return super().put(array, into)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        wait = super().fetch(tensor)
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)

        def count() -> torch.Tensor:
            self.waiting -= 1
            return wait()

        return count

    def capture(self, work: Callable[[], T]) -> Callable[[], T]:
        self.captured += 1
        again = super().capture(work)

        def replay() -> T:
            self.replayed += 1
            return again()

        return replay


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save("qwen3", tmp_path_factory.mktemp("model"))


def make(pair: Pair, queue: DeviceQueue | None = None, **changes: Any) -> DeviceRunner:
    model = load_model(ModelConfig.load(pair.folder), torch.float32, torch.device("cpu"))
    runner = DeviceRunner(model, 60, 4, DeviceLimits(**(LIMITS | changes)), queue=queue)
    runner.warm_up()
    return runner


def answers(runner: Runner, prompts: list[list[int]]) -> list[list[int]]:
    jobs = [job(uid, tokens, COUNT, arrival=float(uid % 3)) for uid, tokens in enumerate(prompts)]
    drawn = run(runner, jobs, num_blocks=60, config=SchedulerConfig(max_running=6, max_batch_tokens=300)).tokens
    return [drawn[uid] for uid in range(len(prompts))]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("ahead", [True, False])
def test_its_switches_change_no_token(pair: Pair, graphs: bool, ahead: bool) -> None:
    queue = Watched()
    runner = make(pair, queue, graphs=graphs, ahead=ahead)
    prompts = [prompt(seed, 2 + 9 * seed) for seed in range(5)]
    assert answers(runner, prompts) == [pair.greedy(tokens, COUNT) for tokens in prompts]
    assert bool(queue.captured) == bool(queue.replayed) == graphs
    assert queue.most_waiting == (2 if ahead else 1)
    assert queue.waiting == 0


def test_nearly_every_step_is_two_graphs(pair: Pair) -> None:
    queue = Watched()
    runner = make(pair, queue)
    prompts = [prompt(seed, 7) for seed in range(4)]
    jobs = [job(uid, tokens, COUNT) for uid, tokens in enumerate(prompts)]
    result = run(runner, jobs, num_blocks=60)
    assert queue.replayed == 2 * result.steps


def test_tokens_stay_on_the_device(pair: Pair) -> None:
    """A decode says which row goes on from where, and not with which token: that isn't known when it is launched."""
    queue = Watched()
    runner = make(pair, queue)
    queue.sent.clear()
    ours = job(3, prompt(4, 5), COUNT)
    assert run(runner, [ours]).tokens[3] == pair.greedy(prompt(4, 5), COUNT)
    decodes = [message for message in queue.sent if len(message) == 3 + 1 + 1]
    assert len(decodes) == COUNT - 1
    assert {int(message[-1]) for message in decodes} == {-1}
    assert [int(message[1]) for message in decodes] == list(range(5, 5 + COUNT - 1))


def test_more_requests_than_rows_one_after_the_other(pair: Pair) -> None:
    runner = make(pair, max_running=2)
    config = SchedulerConfig(max_running=2)
    prompts = [prompt(seed, 3 + seed) for seed in range(12)]
    drawn = run(runner, [job(uid, tokens, 4) for uid, tokens in enumerate(prompts)], config=config).tokens
    assert [drawn[uid] for uid in range(12)] == [pair.greedy(tokens, 4) for tokens in prompts]


def test_who_wants_more_of_the_likeliest_than_a_graph_has(pair: Pair) -> None:
    runner = make(pair)
    wishes = [Sampling(max_tokens=4, temperature=0.0, top_logprobs=count) for count in (0, 3, TOP + 5)]
    jobs = [job(uid, prompt(uid, 8), 4, sampling=wish) for uid, wish in enumerate(wishes)]
    result = run(runner, jobs)
    for uid, wish in enumerate(wishes):
        for token, logprob, top in zip(result.tokens[uid], result.logprobs[uid], result.tops[uid], strict=True):
            if not wish.top_logprobs:
                assert top is None
            else:
                assert top is not None and len(top.tokens) == wish.top_logprobs
                assert top.tokens[0] == token
                assert top.logprobs[0] == pytest.approx(logprob, abs=1e-5)


def test_the_largest_step_can_be_rehearsed(pair: Pair) -> None:
    changes: list[dict[str, Any]] = [{}, {"max_model_len": 5}, {"max_running": 1, "max_batch_tokens": 3}]
    for limits in changes:
        make(pair, graphs=False, **limits).rehearse()
