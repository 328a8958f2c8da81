"""An answer that one worker began and another goes on with: it must be the answer of one that was never disturbed."""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from engine.link import Failed, Output, Sampling, Submit
from tests.engine.link_client import LinkClient, start_worker, tokens_of
from tests.models import llama_folder

PROMPT = list(range(40, 70))
COUNT = 24


@contextmanager
def worker(folder: Path, model: Path | None, *options: str) -> Iterator[LinkClient]:
    path = folder / "w.sock"
    with start_worker(model, path, "--kv-memory", "16MiB", *options) as process:
        with LinkClient(path, process) as client:
            client.hello()
            yield client
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkClient]:
    """Of the demo model."""
    with worker(tmp_path_factory.mktemp("worker"), None, "--dtype", "float32") as client:
        yield client


def ask(client: LinkClient, number: int, tokens: list[int], sampling: Sampling, answered: int = 0) -> list[Output]:
    # Another salt each time: nothing is found in the cache, as on a worker that has never seen the prompt.
    words = array("i", tokens).tobytes()
    client.send(Submit(number, words, sampling, answered=answered, salt=str(number)))
    return client.answer(number)


GRAMMAR = 'start: /[a-z]{4,8}( [a-z]{4,8}){5}/ "."'
CASES = {
    "greedy": Sampling(max_tokens=COUNT, temperature=0.0, ignore_eos=True),
    "seeded": Sampling(max_tokens=COUNT, temperature=0.9, top_p=0.95, seed=11, ignore_eos=True),
    "penalties": Sampling(
        max_tokens=COUNT,
        temperature=1.2,
        seed=-3,
        ignore_eos=True,
        presence_penalty=0.5,
        frequency_penalty=1.5,
        repetition_penalty=1.3,
    ),
    "min_tokens": Sampling(max_tokens=COUNT, temperature=1.0, seed=5, min_tokens=20, stop_token_ids=tuple(range(3000))),
    "grammar": Sampling(max_tokens=COUNT, temperature=1.0, seed=2, grammar=GRAMMAR),
    "logprobs": Sampling(max_tokens=COUNT, temperature=0.0, ignore_eos=True, top_logprobs=3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", [1, 14])
def test_it_goes_on_as_if_nothing_had_happened(client: LinkClient, case: str, cut: int) -> None:
    sampling, number = CASES[case], 1000 * list(CASES).index(case) + 10 * cut
    whole = ask(client, number, PROMPT, sampling)
    tokens = tokens_of(whole)
    assert len(tokens) > cut
    rest = ask(client, number + 1, PROMPT + tokens[:cut], sampling, cut)
    assert tokens_of(rest) == tokens[cut:]
    assert rest[-1].finish == whole[-1].finish
    ours = [(logprob, entropy) for output in whole[cut:] for logprob, entropy in _scores(output)]
    theirs = [(logprob, entropy) for output in rest for logprob, entropy in _scores(output)]
    assert theirs == [pytest.approx(score, abs=1e-3) for score in ours]
    assert [output.top_tokens for output in rest] == [output.top_tokens for output in whole[cut:]]


ROUNDED = {"bfloat16": ["--dtype", "bfloat16"], "int8": ["--dtype", "bfloat16", "--quantization", "int8"]}


@pytest.mark.parametrize("options", ROUNDED.values(), ids=ROUNDED)
def test_rounding_makes_no_difference(tmp_path: Path, options: list[str]) -> None:
    """What was drawn one by one is computed as a prompt here, with the same bits in bfloat16 and int8."""
    with worker(tmp_path, None, *options) as client:
        for number, case in enumerate(("greedy", "seeded")):
            whole = ask(client, 10 * number, PROMPT, CASES[case])
            tokens = tokens_of(whole)
            for cut in (1, 14):
                rest = ask(client, 10 * number + 1 + cut % 9, PROMPT + tokens[:cut], CASES[case], cut)
                assert tokens_of(rest) == tokens[cut:]
                assert [_scores(output) for output in rest] == [_scores(output) for output in whole[cut:]]


def test_it_goes_on_after_thousands_of_tokens(tmp_path: Path) -> None:
    model = llama_folder(tmp_path / "llama")
    prompt = [3 + number * number % 300 for number in range(2500)]
    with worker(tmp_path, model, "--dtype", "bfloat16") as client:
        for number, case in enumerate(("greedy", "seeded")):
            sampling = msgspec.structs.replace(CASES[case], max_tokens=60)
            tokens = tokens_of(ask(client, 10 * number, prompt, sampling))
            assert len(tokens) == 60
            rest = ask(client, 10 * number + 1, prompt + tokens[:40], sampling, 40)
            assert tokens_of(rest) == tokens[40:]


def _scores(output: Output) -> list[tuple[float, float]]:
    return list(zip(output.logprobs, output.entropies, strict=True))


@pytest.mark.parametrize("answered", [-1, len(PROMPT), COUNT])
def test_what_is_no_beginning_is_refused(client: LinkClient, answered: int) -> None:
    tokens = array("i", PROMPT).tobytes()
    client.send(Submit(9_000_000 + answered, tokens, CASES["greedy"], answered=answered))
    failed = client.wait_for(Failed)
    assert failed.code == "invalid_request" and "can't be an answer" in failed.message
