"""An answer that one worker began and another goes on with: it must be the answer of one that was never disturbed."""

from array import array
from collections.abc import Iterator

import pytest

from engine.link import Failed, Output, Sampling, Submit
from tests.engine.link_client import LinkClient, start_worker, tokens_of

PROMPT = list(range(40, 70))
COUNT = 24


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkClient]:
    """Of the demo model."""
    path = tmp_path_factory.mktemp("worker") / "w.sock"
    with start_worker(None, path, "--dtype", "float32", "--kv-memory", "16MiB") as process:
        with LinkClient(path, process) as client:
            client.hello()
            yield client
        process.terminate()
        assert process.wait(20) == 0


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


def _scores(output: Output) -> list[tuple[float, float]]:
    return list(zip(output.logprobs, output.entropies, strict=True))


@pytest.mark.parametrize("answered", [-1, len(PROMPT), COUNT])
def test_what_is_no_beginning_is_refused(client: LinkClient, answered: int) -> None:
    tokens = array("i", PROMPT).tobytes()
    client.send(Submit(9_000_000 + answered, tokens, CASES["greedy"], answered=answered))
    failed = client.wait_for(Failed)
    assert failed.code == "invalid_request" and "can't be an answer" in failed.message
