"""Blocks as an upstream names them, and as we find them."""

import msgspec
import pytest

from gateway.fleet.kv_events import Stored
from gateway.lane.token_blocks import CachedBlocks, root, token_chain
from scheduler.prefix_index import PrefixIndex, chain


class Followed:
    """One upstream's blocks of 4 tokens."""

    def __init__(self) -> None:
        self.index = PrefixIndex(exact=True)
        self.cached = CachedBlocks("a", self.index_of)

    def index_of(self, block_tokens: int, name: str) -> PrefixIndex:
        assert block_tokens == 4
        self.index.add(name, 100)
        return self.index

    def store(
        self,
        hashes: list[int],
        tokens: list[int],
        parent: int | None = None,
        size: int = 4,
        *,
        adapter: str = "",
        salt: str = "",
    ) -> None:
        raw = msgspec.Raw(msgspec.msgpack.encode(tokens))
        self.cached.stored(Stored(hashes, parent, size, adapter, salt, raw))

    def hit(self, tokens: list[int], salt: str = "") -> int:
        return self.index.match(chain(token_chain(tokens, 4, root(salt=salt)))).get("a", 0)


TOKENS = list(range(100, 112))


def test_a_chain_is_found_by_its_tokens() -> None:
    followed = Followed()
    followed.store([7, 8], TOKENS[:8])
    followed.store([9], TOKENS[8:], parent=8)
    assert followed.hit([*TOKENS, 1]) == 3
    assert followed.hit([*TOKENS[:7], 1, 2]) == 1
    assert followed.hit(TOKENS[4:]) == 0
    assert len(followed.cached) == 3
    followed.cached.removed([9, 8])
    assert followed.hit(TOKENS) == 1
    followed.cached.cleared()
    assert followed.hit(TOKENS) == len(followed.cached) == 0
    followed.store([9], TOKENS[8:], parent=8)
    assert followed.hit(TOKENS) == 0, "its beginning is unknown"


def test_a_block_is_there_until_its_last_copy_has_gone() -> None:
    followed = Followed()
    for _ in range(3):
        followed.store([7], TOKENS[:4])
    for left in (1, 1, 0, 0):
        followed.cached.removed([7])
        assert followed.hit(TOKENS[:4]) == left


@pytest.mark.parametrize(("adapter", "salt"), [("", "s"), ("lora", "")])
def test_what_may_not_be_shared_is_not_found(adapter: str, salt: str) -> None:
    followed = Followed()
    followed.store([7], TOKENS[:4], adapter=adapter, salt=salt)
    assert followed.hit(TOKENS) == 0
    assert followed.hit(TOKENS, salt="s") == (1 if salt else 0)


def test_nonsense_is_counted_and_left_out() -> None:
    followed = Followed()
    followed.store([7], TOKENS[:4])
    followed.store([8, 9], TOKENS[4:8], parent=7)
    followed.store([8], TOKENS[4:12], parent=7, size=8)
    followed.store([8], [], parent=7, size=0)
    assert followed.cached.strange == 4
    assert followed.hit(TOKENS) == 1


def test_an_upstream_that_claims_more_than_it_can_hold_is_believed_nothing() -> None:
    followed = Followed()
    many = list(range(4 * 300))
    followed.store(list(range(1, 301)), many)
    assert followed.hit(many) == len(followed.cached) == 0


def test_chains_of_any_block_size() -> None:
    assert len(token_chain(TOKENS, 5, 1)) == 2
    assert len(token_chain([], 5, 1)) == 0
    assert token_chain(TOKENS, 4, 1)[:2] == token_chain(TOKENS[:9], 4, 1)
    assert token_chain(TOKENS, 4, 1) != token_chain(TOKENS, 4, 2)
