import argparse
import math
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.arrivals import ClosedLoop, WorkloadError
from bench.load.prompts import UNKNOWN
from bench.load.records import Workload
from bench.load.traces import BLOCK_TOKENS
from bench.load.workload import REQUESTS, Conversations, Load, Synthetic, Trace, add_arguments, from_args
from engine.demo import MODEL_FOLDER

TRACE = """\
{"timestamp": 0, "input_length": 700, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 0, "input_length": 1100, "output_length": 20, "hash_ids": [0, 2, 3]}
{"timestamp": 3000, "input_length": 30, "output_length": 1, "hash_ids": [4]}
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="bench")
    add_arguments(made)
    return made


def load(*options: str) -> Load:
    return from_args(parser().parse_args(options))


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text(TRACE)
    return str(path)


def test_without_options_it_is_a_short_run() -> None:
    workload = load()
    asks = list(workload.asks())
    assert workload.title == "Poisson 4/s, input 512, output 128"
    assert len(asks) == REQUESTS
    assert [ask.index for ask in asks] == list(range(REQUESTS))
    assert {(ask.prompt_tokens, ask.output_tokens) for ask in asks} == {(512, 128)}
    times = [ask.at for ask in asks if ask.at is not None]
    assert times == sorted(times)
    assert REQUESTS / 4 * 0.7 < times[-1] < REQUESTS / 4 * 1.3
    assert len({str(ask.prompt) for ask in asks}) == REQUESTS


def test_it_is_a_workload_of_the_contract() -> None:
    workload: Workload = load()
    assert next(workload.asks()).prompt_tokens == 512


@given(
    st.sampled_from(["poisson:50", "constant:50", "gamma:50,0.2", "ramp:1,90,3s", "steps:9x1s,0x1s,99x1s", "closed:4"]),
    st.sampled_from(["64", "uniform:10,200", "lognormal:80,1.0,max=300"]),
    st.integers(0, 2**40),
    st.sampled_from([(), ("--shared-prefix", "100", "--groups", "3"), ("--turns", "uniform:1,4", "--think", "3")]),
)
def test_the_same_options_ask_the_same(arrivals: str, length: str, seed: int, more: tuple[str, ...]) -> None:
    options = ("--arrivals", arrivals, "--input", length, "--output", length, "--requests", "30", *more)
    first, second = load(*options, "--seed", str(seed)), load(*options, "--seed", str(seed))
    asks = list(first.asks())
    assert asks == list(second.asks()) == list(first.asks())
    assert 0 < len(asks) <= 30
    outlines = list(first.outlines())
    assert [(one.at, one.output_tokens, one.group, one.session) for one in outlines] == [
        (ask.at, ask.output_tokens, ask.group, ask.session) for ask in asks
    ]
    assert [one.input_tokens for one in outlines] == [ask.prompt_tokens for ask in asks]


def test_a_closed_loop_has_no_times_and_says_how_many_are_asked_at_once() -> None:
    workload = load("--arrivals", "closed:8")
    assert workload.concurrency == 8
    assert workload.arrivals == ClosedLoop(8)
    assert {ask.at for ask in workload.asks()} == {None}
    assert sum(1 for _ in workload.outlines()) == REQUESTS
    unbounded = load("--arrivals", "closed:8", "--duration", "5s").outlines()
    assert len(list(islice(unbounded, 5 * REQUESTS))) == 5 * REQUESTS


def test_duration_and_requests_bound_it() -> None:
    assert len(list(load("--arrivals", "constant:10", "--duration", "1m").outlines())) == 600
    assert len(list(load("--arrivals", "constant:10", "--duration", "1m", "--requests", "9").outlines())) == 9
    ramp = load("--arrivals", "ramp:10,30,1m")
    assert ramp.requests is None
    assert abs(sum(1 for _ in ramp.outlines()) - 1200) < 4 * math.sqrt(1200)


def test_groups_share_their_prefix() -> None:
    workload = load("--shared-prefix", "100", "--groups", "3", "--input", "50", "--prompt-form", "tokens")
    assert isinstance(workload, Synthetic)
    assert workload.title.endswith("3 shared prefixes of 100")
    prefixes: dict[str, set[tuple[int, ...]]] = {}
    for ask in workload.asks():
        assert isinstance(ask.prompt, list)
        assert len(ask.prompt) == ask.prompt_tokens == 150
        prefixes.setdefault(ask.group, set()).add(tuple(ask.prompt[:100]))  # type: ignore[arg-type]
    assert set(prefixes) == {"prefix-0", "prefix-1", "prefix-2"}
    assert all(len(found) == 1 for found in prefixes.values())
    assert len(set.union(*prefixes.values())) == 3


def test_conversations_take_turns() -> None:
    workload = load("--turns", "3", "--think", "exponential:2", "--requests", "10", "--shared-prefix", "64")
    assert isinstance(workload, Conversations)
    assert workload.title.startswith("conversations of 3 turns, Poisson 4/s")
    asks = list(workload.asks())
    assert [(ask.session, ask.turn) for ask in asks] == [(n // 3, n % 3) for n in range(10)]
    assert all((ask.at is None) == (ask.turn > 0) for ask in asks)
    assert all((ask.after > 0) == (ask.turn > 0) for ask in asks)
    assert [ask.prompt_tokens for ask in asks[:3]] == [512 + 64, 512, 512]
    assert all(isinstance(ask.prompt, list) and len(ask.prompt) == 1 for ask in asks)
    whole = load("--turns", "3", "--arrivals", "constant:5", "--duration", "2s")
    assert len(list(whole.outlines())) == 30


def test_a_trace_keeps_its_times_lengths_and_blocks(trace: str) -> None:
    workload = load("--trace", trace, "--speed", "2", "--spread", "--prompt-form", "text")
    assert isinstance(workload, Trace)
    assert workload.title == "trace.jsonl (Mooncake JSONL) x 2"
    asks = list(workload.asks())
    assert [ask.at for ask in asks] == [0, 0.75, 1.5]
    assert [(ask.prompt_tokens, ask.output_tokens) for ask in asks] == [(700, 500), (1100, 20), (30, 1)]
    words = [str(ask.prompt).split(" ") for ask in asks]
    assert words[0][:BLOCK_TOKENS] == words[1][:BLOCK_TOKENS]
    assert words[0][BLOCK_TOKENS:] != words[1][BLOCK_TOKENS:700]
    assert [one.blocks for one in workload.outlines()] == [(0, 1), (0, 2, 3), (4,)]


def test_a_trace_may_come_at_other_times(trace: str) -> None:
    workload = load("--trace", trace, "--arrivals", "constant:1", "--duration", "2")
    assert workload.title == "trace.jsonl (Mooncake JSONL), constant 1/s"
    assert [(one.at, one.input_tokens) for one in workload.outlines()] == [(0, 700), (1, 1100)]
    assert [one.at for one in load("--trace", trace, "--arrivals", "closed:2").outlines()] == [None] * 3
    assert len(list(load("--trace", trace, "--limit", "1").outlines())) == 1


def test_lengths_are_exact_with_the_models_tokenizer_which_a_simulator_never_loads() -> None:
    options = parser().parse_args(["--tokenizer", str(MODEL_FOLDER), "--requests", "3"])
    assert from_args(options).wording.exact
    assert from_args(options, prompts=False).wording is UNKNOWN


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--speed", "2"], "--speed is for --trace FILE"),
        (["--spread"], "--spread is for --trace FILE"),
        (["--groups", "2"], "say with --shared-prefix how long they are"),
        (["--think", "2"], "say with --turns how many there are"),
        (["--trace", "x", "--input", "5"], "--input is for requests without --trace"),
        (["--trace", "x", "--shared-prefix", "5"], "--shared-prefix is for requests without --trace"),
        (["--trace", "x", "--arrivals", "poisson:5", "--speed", "2"], "give one of them"),
        (["--trace", "/no/such"], "/no/such: No such file"),
        (["--tokenizer", "no-such"], "tokenizer: no-such is no folder"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], says: str) -> None:
    with pytest.raises(WorkloadError) as error:
        load(*options)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--arrivals", "poisson"], "argument --arrivals: arrivals 'poisson': write poisson:RATE"),
        (["--input", "zipf:2"], "argument --input: 'zipf:2': write N, uniform:FROM,TO"),
        (["--duration", "soon"], "argument --duration: 'soon' is no time above 0"),
        (["--requests", "0"], "'0' is no whole number of 1 or more"),
        (["--speed", "-1"], "'-1' is no factor above 0"),
        (["--speed", "fast"], "'fast' is no factor above 0: write 2 for twice as fast"),
        (["--seed", "x"], "'x' is no whole number of 0 or more"),
    ],
)
def test_options_that_are_wrong(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(*options)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_help_says_the_grammar_and_every_default() -> None:
    text = " ".join(parser().format_help().split())
    for part in ("gamma:RATE,BURSTINESS", "lognormal:MEAN,SIGMA", "Mooncake JSONL", "poisson:4"):
        assert part in text
    silent = [
        action.dest
        for action in parser()._actions
        if action.dest not in ("help", "trace", "spread") and "efault: " not in (action.help or "")
    ]
    assert silent == []
