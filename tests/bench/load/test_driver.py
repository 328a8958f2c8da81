import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from bench.load.client import Api, Client
from bench.load.driver import Driver, Listed, Progress, add_gaps, drive, merged
from bench.load.histogram import Histogram
from bench.load.http import parse_url
from bench.load.records import Ask, Record
from tests.bench.load.stub import Plan, Stub


def an_ask(index: int, at: float | None = None, **more: Any) -> Ask:
    prompt = [{"role": "user", "content": f"q{index}"}]
    return Ask(index=index, prompt=prompt, prompt_tokens=1, output_tokens=4, at=at, **more)


class Run:
    """What a driver made of some asks: its records, its progress, and when it began on the monotonic clock."""

    def __init__(
        self,
        stub: Stub,
        asks: Iterator[Ask],
        concurrency: int | None = None,
        stop_after: float | None = None,
        **more: Any,
    ) -> None:
        self.records: list[Record] = []
        self.zero = 0.0

        async def run() -> Progress:
            client = Client(Api(url=stub.url, model="stub"), parse_url(stub.url), timeout=20)
            self.zero = client.zero
            stop = asyncio.Event()
            if stop_after is not None:
                asyncio.get_running_loop().call_later(stop_after, stop.set)
            driver = Driver(client, Listed(asks), self.records.append, concurrency, **more)
            return await drive(driver, stop if stop_after is not None else None)

        self.progress = asyncio.run(run())


def test_totals_agree_with_the_endpoints_own_count() -> None:
    with Stub(lambda body: Plan(chunks=(1, 2, 3), says="token_ids")) as stub:
        run = Run(stub, (an_ask(i, i / 200) for i in range(60)))
        counts = stub.counts
    assert len(run.records) == counts.requests == counts.whole == 60
    assert sum(record.output_tokens for record in run.records) == counts.tokens == run.progress.output_tokens == 360
    assert sum(record.prompt_tokens for record in run.records) == counts.prompt_tokens
    assert run.progress.outcomes == {"ok": 60}
    assert run.progress.in_flight == 0


def test_nothing_is_sent_before_its_time() -> None:
    with Stub() as stub:
        run = Run(stub, (an_ask(i, i / 100) for i in range(30)))
    for record in run.records:
        assert record.started is not None
        assert record.started >= record.at == pytest.approx(record.index / 100)
        assert record.delay is not None
        assert record.delay >= 0


def test_a_stall_is_not_hidden() -> None:
    """Requests that were due while the endpoint stood still have waited for its end, each from when it was due."""
    with Stub(lambda body: Plan(pace=0.002), stall=(0.5, 1.0)) as stub:
        run = Run(stub, (an_ask(i, i / 50) for i in range(100)))
        assert stub.stalled is not None
        begin, end = (moment - run.zero for moment in stub.stalled)
        arrivals = [moment - run.zero for moment in stub.counts.arrivals]
    assert sum(begin < moment < end for moment in arrivals) > 25  # nothing waited for an answer: the loop is open
    due = [record for record in run.records if begin <= record.at < end]
    assert len(due) >= 45
    for record in due:
        assert record.ttft is not None
        assert record.ttft >= end - record.at
    assert run.progress.ttft.quantile(0.99) >= 0.93
    assert run.progress.ttft.quantile(0.75) >= 0.45


def test_a_closed_loop_has_so_many_at_a_time_and_hides_the_stall() -> None:
    with Stub(lambda body: Plan(pace=0.002), stall=(0.1, 0.5)) as stub:
        run = Run(stub, (an_ask(i) for i in range(100)), concurrency=2)
    spans = sorted((record.at, record.end) for record in run.records)
    assert len(spans) == 100
    assert max(sum(a <= at < b for a, b in spans) for at, _ in spans) == 2
    late = [record for record in run.records if record.latency > 0.4]
    assert len(late) <= 2  # which is why open loops are the default


def test_a_closed_loop_ends_in_time() -> None:
    with Stub(lambda body: Plan(pace=0.01)) as stub:
        run = Run(stub, (an_ask(i) for i in range(10**9)), concurrency=3, duration=0.3)
    assert run.records
    assert all(record.at < 0.3 for record in run.records)
    assert run.progress.interrupted == 0


@pytest.mark.parametrize("concurrency", [None, 2])
def test_conversations_wait_for_their_answers_and_think(concurrency: int | None) -> None:
    def asks() -> Iterator[Ask]:
        for session in range(4):
            for turn in range(3):
                at = session * 0.02 if concurrency is None and turn == 0 else None
                yield an_ask(session * 3 + turn, at, session=session, turn=turn, after=0.1 * (turn > 0))

    with Stub(lambda body: Plan(chunks=(2, 1), pace=0.01)) as stub:
        run = Run(stub, asks(), concurrency)
        bodies = stub.counts.bodies
    assert len(run.records) == 12
    turns = {record.index: record for record in run.records}
    for index, record in turns.items():
        if index % 3:
            assert record.at >= turns[index - 1].end + 0.1 - 1e-5
    last = next(body for body in bodies if body["messages"][-1]["content"] == "q2")
    contents = ["q0", "x x x ", "q1", "x x x ", "q2"]
    assert [message["content"] for message in last["messages"]] == contents
    assert [message["role"] for message in last["messages"]] == ["user", "assistant"] * 2 + ["user"]


def test_a_turn_that_failed_is_left_out_of_the_conversation() -> None:
    def plan(body: dict[str, Any]) -> Plan:
        return Plan(status=500 if body["messages"][-1]["content"] == "q0" else 200)

    with Stub(plan) as stub:
        run = Run(stub, (an_ask(turn, 0.0 if turn == 0 else None, session=9, turn=turn) for turn in range(2)))
        contents = [message["content"] for message in stub.counts.bodies[-1]["messages"]]
    assert [record.outcome for record in run.records] == ["failed", "ok"]
    assert contents == ["q1"]


def test_stopping_drops_what_is_under_way() -> None:
    def plan(body: dict[str, Any]) -> Plan:
        return Plan(ends="never" if body["messages"][-1]["content"] != "q0" else "done")

    with Stub(plan) as stub:
        run = Run(stub, (an_ask(i, i * 0.01) for i in range(10**9)), stop_after=0.5)
    assert [record.index for record in run.records] == [0]
    assert run.progress.interrupted == run.progress.offered - 1 > 0


def test_an_error_of_our_own_is_not_swallowed() -> None:
    def broken() -> Iterator[Ask]:
        yield an_ask(0, 0.0)
        raise RuntimeError("no more paper")

    with Stub() as stub, pytest.raises(RuntimeError, match="no more paper"):
        Run(stub, broken())


def test_gaps_between_tokens_that_came_together_are_zero() -> None:
    itl = Histogram()
    record = Record(index=0, at=0.0, outcome="ok", end=9.0, first=1.0, last=4.0)
    record.gaps, record.gap_tokens, record.output_tokens = [1.0, 2.0], [1, 3], 6  # two came first, so six in all
    add_gaps(itl, record)
    assert (itl.total, itl.sum) == (5, 3.0)
    assert itl.quantiles([0.6, 1.0])[0] == 0.0


def test_progress_of_several_clients_adds_up() -> None:
    parts = [Progress(elapsed=1.0, offered=3, interrupted=1), Progress(elapsed=2.0, offered=2)]
    parts[0].note(Record(index=0, at=0.0, started=0.1, outcome="ok", end=1.0, first=0.5, last=1.0, output_tokens=2))
    parts[1].note(Record(index=1, at=0.0, started=0.1, outcome="timeout", end=1.0))
    whole = merged(parts)
    assert (whole.elapsed, whole.offered, whole.finished, whole.interrupted, whole.in_flight) == (2.0, 5, 2, 1, 2)
    assert whole.outcomes == {"ok": 1, "timeout": 1}
    assert (whole.ttft.total, whole.latency.total, whole.delay.total, whole.output_tokens) == (1, 1, 2, 2)
    assert merged([]).in_flight == 0
