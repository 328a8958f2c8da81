"""Grammars, penalties, log-probabilities and embeddings over the link, asked of a real worker process."""

import re
import subprocess
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from engine.link import Drain, Failed, Output, Pooling, Sampling, Submit
from engine.sketch import projection
from tests.engine.link_client import LinkClient, start_worker, tokens_of
from tests.models import CONTEXT, VOCABULARY, llama_folder

PROMPT = [5, 17, 3, 99, 42, 8, 250, 7, 31]
GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
CODE = LLMatcher.grammar_from_regex("[a-f]{3}-[0-9]{4}")


def slow_grammar(number: int) -> str:
    """Takes about a second to compile, and is in no cache: each ``number`` makes another."""
    return f'start: "{number}" | ' + " | ".join(f"/[a-z]{i}/" for i in range(18_000))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest.fixture(scope="module")
def worker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("worker") / "w.sock"
    with start_worker(model, path, "--dtype", "float32", "--kv-memory", "4MiB") as process:
        with LinkClient(path, process) as client:
            client.hello()
        yield path
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture
def client(worker: Path) -> Iterator[LinkClient]:
    with LinkClient(worker) as client:
        client.hello()
        yield client


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", LinkClient]]:
    """A worker that the test may drain, and a client of it."""
    path = tmp_path / "w.sock"
    process = start_worker(model, path, "--dtype", "float32", "--kv-memory", "4MiB")
    with process, LinkClient(path, process) as client:
        yield process, client
        process.kill()


def failure(client: LinkClient, number: int) -> Failed:
    return client.wait_for(Failed, lambda failed: failed.id == number)


def embed(client: LinkClient, number: int, tokens: list[int], pooling: Pooling) -> Output:
    client.send(Submit(number, array("i", tokens).tobytes(), Sampling(max_tokens=1), embed=pooling))
    (output,) = client.answer(number)
    assert (output.tokens, output.finish) == ([], "stop")
    return output


def hidden_states(folder: Path, tokens: list[int]) -> torch.Tensor:
    judge = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        result: torch.Tensor = judge.model(torch.tensor([tokens])).last_hidden_state[0]
    return result


def test_hello_says_what_it_can(worker: Path) -> None:
    with LinkClient(worker) as client:
        hello = client.hello()
        assert hello.capabilities == ("blocks", "grammar")
        assert hello.embedding_size == 96


def test_without_a_tokenizer_there_are_no_grammars(tmp_path: Path) -> None:
    folder, path = llama_folder(tmp_path / "model"), tmp_path / "w.sock"
    with start_worker(folder, path, "--kv-memory", "4MiB") as process, LinkClient(path, process) as client:
        assert client.hello().capabilities == ("blocks",)
        client.submit(1, PROMPT, Sampling(max_tokens=5, grammar=CODE))
        failed = failure(client, 1)
        assert failed.code == "invalid_request"
        assert "tokenizer.json" in failed.message
        client.submit(2, PROMPT, GREEDY)
        assert len(client.answer(2)) == 12
        process.kill()


def test_answers_match_their_grammars(client: LinkClient, model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for number in range(20):
        grammar = CODE if number % 2 else ""
        client.submit(number, PROMPT, Sampling(max_tokens=40, seed=number, grammar=grammar, ignore_eos=True))
    for number in range(20):
        outputs = client.answer(number)
        if number % 2:
            assert outputs[-1].finish == "stop", "a grammar ends the answer, whatever is ignored"
            assert re.fullmatch("[a-f]{3}-[0-9]{4}", tokenizer.decode(tokens_of(outputs)[:-1]))
        else:
            assert len(tokens_of(outputs)) == 40


@pytest.mark.parametrize(("grammar", "said"), [("start: (", "Expected token"), ("start: nothing", "nothing")])
def test_a_grammar_that_is_wrong_fails_its_request(client: LinkClient, grammar: str, said: str) -> None:
    for number in (1, 2):  # the second time it is known to be wrong
        client.submit(number, PROMPT, Sampling(max_tokens=5, grammar=grammar))
        failed = failure(client, number)
        assert failed.code == "invalid_request"
        assert said in failed.message


def test_others_go_on_while_a_grammar_is_compiled(client: LinkClient) -> None:
    client.submit(1, PROMPT, Sampling(max_tokens=5, grammar=slow_grammar(1)))
    client.submit(2, PROMPT, GREEDY)
    client.answer(2)
    assert not client.outputs(1)
    assert 1 <= len(client.answer(1)) <= 5


def test_an_abort_while_a_grammar_is_compiled_is_final(client: LinkClient) -> None:
    client.submit(1, PROMPT, Sampling(max_tokens=5, grammar=slow_grammar(2)))
    client.abort(1)
    client.submit(1, PROMPT, GREEDY)  # the number is free again
    assert len(client.answer(1)) == 12
    client.submit(2, PROMPT, Sampling(max_tokens=5, grammar=slow_grammar(2)))
    client.answer(2)
    assert len(client.outputs(1)) == 12


def test_a_gateway_that_leaves_while_a_grammar_is_compiled_harms_nobody(worker: Path, client: LinkClient) -> None:
    with LinkClient(worker) as leaving:
        leaving.hello()
        leaving.submit(1, PROMPT, Sampling(max_tokens=5, grammar=slow_grammar(3)))
    client.submit(1, PROMPT, Sampling(max_tokens=5, grammar=slow_grammar(3)))
    client.answer(1)
    client.submit(2, PROMPT, GREEDY)
    client.answer(2)
    client.idle()


def test_draining_waits_for_a_grammar(own: tuple["subprocess.Popen[str]", LinkClient]) -> None:
    process, client = own
    client.hello()
    client.submit(1, PROMPT, Sampling(max_tokens=5, grammar=slow_grammar(4)))
    client.send(Drain())
    assert client.answer(1)[-1].finish is not None
    assert process.wait(20) == 0


def test_a_request_that_can_draw_nothing_fails_alone(client: LinkClient) -> None:
    client.submit(1, PROMPT, Sampling(max_tokens=50, temperature=0.0, ignore_eos=True))
    client.submit(2, PROMPT, Sampling(max_tokens=5, allowed_token_ids=(9,), bad_words=((9,),)))
    failed = failure(client, 2)
    assert failed.code == "invalid_request"
    assert "allowed_token_ids, bad_words and min_tokens exclude each other" in failed.message
    assert len(client.answer(1)) == 50
    assert client.idle().kv_used == 0


def test_allowed_ids_penalties_and_biases_arrive(client: LinkClient) -> None:
    client.submit(1, PROMPT, Sampling(max_tokens=9, allowed_token_ids=(40, 41), ignore_eos=True, seed=1))
    assert set(tokens_of(client.answer(1))) == {40, 41}
    client.submit(2, PROMPT, Sampling(max_tokens=6, temperature=0.0, logit_bias={77: 1000.0}, ignore_eos=True))
    assert tokens_of(client.answer(2)) == [77] * 6
    penalised = Sampling(
        max_tokens=6, temperature=0.0, logit_bias={77: 1000.0, 78: 900.0}, frequency_penalty=60.0, ignore_eos=True
    )
    client.submit(3, PROMPT, penalised)
    assert tokens_of(client.answer(3)) == [77, 77, 78, 77, 78, 77]


def test_log_probabilities_of_prompt_and_answer(client: LinkClient, model: Path) -> None:
    client.submit(1, PROMPT, Sampling(max_tokens=6, seed=3, ignore_eos=True, top_logprobs=3, prompt_logprobs=2))
    outputs = client.answer(1)
    answer = tokens_of(outputs)
    judge = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected = judge(torch.tensor([PROMPT + answer])).logits[0].log_softmax(-1)
    for place, output in enumerate(outputs):
        row = expected[len(PROMPT) - 1 + place]
        assert output.logprobs[0] == pytest.approx(float(row[answer[place]]), abs=1e-3)
        assert output.top_tokens == [row.topk(3).indices.tolist()]
        assert output.top_logprobs[0] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
        assert (output.prompt is None) == (place > 0)
    scores = outputs[0].prompt
    assert scores is not None and scores.top == 2
    own = expected[range(len(PROMPT) - 1), PROMPT[1:]]
    assert np.frombuffer(scores.logprobs, "<f4") == pytest.approx(own.numpy(), abs=1e-3)
    top = expected[: len(PROMPT) - 1].topk(2).indices
    assert np.frombuffer(scores.top_tokens, "<i4").reshape(-1, 2).tolist() == top.tolist()


def test_embeddings(client: LinkClient, model: Path) -> None:
    tokens = [token % VOCABULARY for token in range(3, 200)]
    expected = hidden_states(model, tokens)
    first = embed(client, 1, tokens, "last")
    again = embed(client, 2, tokens, "last")
    mean = embed(client, 3, tokens, "mean")
    assert (first.cached, again.cached, mean.cached) == (0, 192, 0)
    for output, vector in ((first, expected[-1]), (again, expected[-1]), (mean, expected.mean(0))):
        assert np.frombuffer(output.embedding, "<f4") == pytest.approx(vector.numpy(), abs=1e-3)
    assert first.queued >= 0
    client.idle()


def test_sketches_and_low_margins(client: LinkClient, model: Path) -> None:
    """The first output has the sketch, whether the cache had the prompt or not; one that goes on has none."""
    tokens = [token % VOCABULARY for token in range(7, 150)]
    state = hidden_states(model, tokens)[-1].numpy()
    answer: list[int] = []
    for number, known in ((1, 0), (2, 0), (3, 4)):
        words = array("i", tokens + answer[:known]).tobytes()
        client.send(Submit(number, words, GREEDY, sketch=True, answered=known))
        outputs = client.answer(number)
        first, *others = [output.sketch for output in outputs]
        assert others == [b""] * len(others)
        if known:
            assert first == b""
        else:
            assert np.frombuffer(first, "<f2") == pytest.approx(state @ projection(96), abs=4e-3, rel=2e-3)
            answer = tokens_of(outputs)
        assert all(output.low_margins in (0, 1) for output in outputs)
    client.submit(4, tokens, GREEDY)
    assert [output.sketch for output in client.answer(4)] == [b""] * 12


def test_a_prompt_that_fills_the_context_can_be_embedded(client: LinkClient) -> None:
    assert len(embed(client, 1, [7] * CONTEXT, "mean").embedding) == 4 * 96
    client.submit(2, [7] * CONTEXT, GREEDY)
    assert failure(client, 2).code == "context_length_exceeded"
