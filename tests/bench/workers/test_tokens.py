import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.workers.tokens import VOCABULARY, Codec, Message, Voice

texts = st.text(max_size=60)
sizes = st.integers(2, 8)
# A busy machine is slow, and that is no fault of the tests.
relaxed = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(texts, texts, sizes)
def test_a_text_with_more_behind_it_begins_with_the_same_whole_pieces(text: str, more: str, size: int) -> None:
    codec = Codec(size)
    tokens, longer = codec.encode(text), codec.encode(text + more)
    whole = len(text.encode()) // size
    assert longer[:whole] == tokens[:whole]
    assert len(tokens) == -(-len(text.encode()) // size)
    assert all(0 <= token < VOCABULARY for token in longer)


@relaxed
@given(st.text(min_size=1, max_size=60))
def test_a_change_shows_from_its_place_on(text: str) -> None:
    codec = Codec()
    tokens, changed = codec.encode(f"abcd{text}"), codec.encode(f"abce{text}")
    assert tokens[0] != changed[0] and tokens[1:] == changed[1:]


def said(codec: Codec, before: list[int], count: int) -> tuple[list[int], str]:
    voice = Voice(codec, before)
    words = [voice.next() for _ in range(count)]
    return [word.id for word in words], "".join(word.text for word in words)


@relaxed
@given(texts, sizes, st.integers(0, 20))
def test_whoever_continues_an_answer_says_what_would_have_come(text: str, size: int, so_far: int) -> None:
    codec = Codec(size)
    prompt = codec.chat([Message("user", text)])
    tokens, _ = said(codec, prompt, 40)
    assert said(codec, prompt + tokens[:so_far], 40 - so_far)[0] == tokens[so_far:]


@relaxed
@given(texts, texts, sizes)
def test_the_next_turn_begins_with_the_tokens_of_this_one(question: str, another: str, size: int) -> None:
    codec = Codec(size)
    prompt = codec.chat([Message("system", "be brief"), Message("user", question)])
    tokens, text = said(codec, prompt, 25)
    turns = [("system", "be brief"), ("user", question), ("assistant", text), ("user", another)]
    following = codec.chat([Message(*turn) for turn in turns])
    assert following[: len(prompt) + 25] == prompt + tokens


def test_answers_differ_by_prompt_and_do_not_repeat_themselves() -> None:
    codec = Codec()
    answers = [said(codec, codec.encode(f"question {number}"), 50)[1] for number in range(20)]
    assert len(set(answers)) == 20
    assert all(len(set(answer.split())) > 40 for answer in answers)


@pytest.mark.parametrize("size", [1, 9])
def test_a_token_has_two_to_eight_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="it has 2 to 8"):
        Codec(size)
