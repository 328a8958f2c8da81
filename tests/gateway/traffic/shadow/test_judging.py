"""What becomes of two answers, and that nobody waits for it."""

import asyncio
import sys

import msgspec

from gateway.traffic.answers import CHAT, RESPONSES, Answer, Collector, Said
from gateway.traffic.shadow.compare import compare
from gateway.traffic.shadow.judging import Pair, compare_beginnings, judge, judge_all
from gateway.wire.shadows import ShadowPair
from tests.gateway.harness import run


def said(text: str, reason: str | None = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    return msgspec.json.encode({"choices": [{"index": 0, "message": message, "finish_reason": reason}]})


def pair(text: str, shadow: bytes, *, asked: bytes | None = b'{"model": "x"}', endpoint: str = CHAT) -> Pair:
    return Pair("req-1", "chat", "next", endpoint, 3.0, asked, Answer(text, (), "stop"), shadow)


def test_a_pair_is_compared_and_kept() -> None:
    found = judge(pair("It is four.", said("It is five.")))
    assert found is not None
    assert found.comparison == compare(Answer("It is four."), Answer("It is five."))
    kept = msgspec.json.decode(found.line, type=ShadowPair)
    assert (kept.request_id, kept.model, kept.target, kept.endpoint, kept.at) == ("req-1", "chat", "next", CHAT, 3.0)
    assert kept.request == '{"model": "x"}'
    assert (kept.answer, kept.shadow) == (Answer("It is four.", (), "stop"), Answer("It is five.", (), "stop"))
    assert kept.comparison == found.comparison and kept.agrees is found.comparison.agrees


def test_an_answer_may_still_have_to_be_read() -> None:
    collector = Collector()
    collector.add(said("It is four."))
    unread = pair("", said("It is four"))._replace(answer=collector.said(CHAT, streamed=False))
    found = judge(unread)
    assert found is not None and found.comparison.normalised
    assert msgspec.json.decode(found.line, type=ShadowPair).answer == Answer("It is four.", (), "stop")
    for body in (b"{}", said("It is", None)):  # an error, and an answer that was cut
        assert judge(unread._replace(answer=Said(CHAT, [body], len(body), False))) is None


def test_nothing_is_kept_where_it_must_not_be() -> None:
    found = judge(pair("It is four.", said("It is five."), asked=None))
    assert found is not None and found.line == b""


def test_errors_and_cut_answers_are_not_compared() -> None:
    for body in (b"", b"{", b'{"error": {"message": "no"}}', said("It is", None)):
        assert judge(pair("It is four.", body)) is None
    assert judge(pair("It is four.", said("It is four."), endpoint=RESPONSES)) is None
    assert [found is None for found in judge_all([pair("a", said("a")), pair("a", b"")])] == [False, True]


def test_long_texts_are_compared_at_their_beginnings() -> None:
    text = "word " * 100_000
    same = compare_beginnings(Answer(text), Answer(text))
    assert same.exact and same.agrees and same.length == 1
    longer = compare_beginnings(Answer(text), Answer(text + text))
    assert not longer.exact and longer.edits == 0 and longer.length == 2
    assert compare_beginnings(Answer(""), Answer(text)).length == 0
    other = compare_beginnings(Answer(text), Answer("another " * 60_000))
    assert not other.exact and other.edits == 1 and not other.agrees
    short = Answer("two words"), Answer("three words more")
    assert compare_beginnings(*short) == compare(*short)


def test_of_long_arguments_it_is_told_whether_they_are_the_same() -> None:
    long, other = ('{"text": "' + letter * 200_000 + '"}' for letter in "ab")
    assert compare_beginnings(Answer("", (("write", long),)), Answer("", (("write", long),))).calls == "same"
    assert compare_beginnings(Answer("", (("write", long),)), Answer("", (("write", other),))).calls == "arguments"
    assert compare_beginnings(Answer("", (("write", long),)), Answer("", (("read", long),))).calls == "tools"


def test_what_is_kept_has_an_end() -> None:
    calls = tuple((f"write{number}", "x" * 100_000) for number in range(100))
    long = Pair("r", "m", "t", CHAT, 0.0, b"x" * 100_000, Answer("a" * 900_000, calls, "stop"), said("b" * 900_000))
    found = judge(long)
    assert found is not None and len(found.line) < 1_500_000
    kept = msgspec.json.decode(found.line, type=ShadowPair)
    assert kept.request is None and kept.answer.text == "a" * (1 << 16)


def test_huge_texts_do_not_hold_the_event_loop_up() -> None:
    """While they are compared in a thread, the event loop goes round and round."""

    async def scenario() -> int:
        usual = sys.getswitchinterval()
        texts = ["".join(f"{word * number} Berlin, " for number in range(60_000)) for word in (3, 7)]
        doing = asyncio.create_task(asyncio.to_thread(judge_all, [pair(texts[0], said(texts[1]))] * 10))
        rounds = 0
        while not doing.done():
            await asyncio.sleep(0.0001)
            rounds += 1
        assert None not in doing.result()
        assert sys.getswitchinterval() == usual
        return rounds

    assert run(scenario()) > 20
