"""`bench.simulate.prompts`: hashes agree exactly where prompts do."""

from hypothesis import given
from hypothesis import strategies as st

from bench.simulate.prompts import Prompts, token
from scheduler.blocks import chain_hashes, root_hash


def written(uid: int, length: int, blocks: list[int], block_tokens: int) -> list[int]:
    """The prompt in real tokens."""
    tokens = [10_000 * block + place for block in blocks for place in range(block_tokens)][:length]
    return tokens + [2_000_000 + 10_000 * uid + place for place in range(length - len(tokens))]


@given(
    st.lists(st.tuples(st.integers(1, 200), st.lists(st.integers(0, 2), max_size=5)), min_size=2, max_size=4),
    st.sampled_from([8, 16, 24, 50]),
    st.sampled_from([4, 16]),
)
def test_hashes_are_equal_where_those_of_real_tokens_are(
    prompts: list[tuple[int, list[int]]], block_tokens: int, size: int
) -> None:
    maker = Prompts(size)
    made = [maker.make(uid, length, blocks, block_tokens) for uid, (length, blocks) in enumerate(prompts)]
    real = [
        chain_hashes(written(uid, length, blocks, block_tokens), size, root_hash("", ""))
        for uid, (length, blocks) in enumerate(prompts)
    ]
    for mine, theirs in zip(made, real, strict=True):
        assert len(mine.hashes) == len(theirs)
        for other, others in zip(made, real, strict=True):
            same = [a == b for a, b in zip(mine.hashes, other.hashes, strict=False)]
            assert same == [a == b for a, b in zip(theirs, others, strict=False)]


def test_a_prompt_has_its_length_and_tokens_of_its_own() -> None:
    maker = Prompts(16)
    one, other = maker.make(0, 40), maker.make(1, 40)
    assert len(one.tokens) == 40 and len(one.hashes) == 2
    assert not set(one.tokens) & set(other.tokens) and not set(one.hashes) & set(other.hashes)
    assert set(one.tokens) == {token(0)}


def test_a_conversation_goes_on_behind_what_was_said() -> None:
    before = [bytes([place]) * 16 for place in range(3)]
    prompt = Prompts(16).make(5, 100, before=before)
    assert prompt.hashes[:3] == before and len(prompt.hashes) == 6
