"""Bearer keys."""

import pytest

from gateway.keys import Keys
from gateway.wire.errors import ApiError


def test_no_keys_let_everybody_in() -> None:
    keys = Keys()
    assert not keys
    keys.check(b"")


@pytest.mark.parametrize("sent", [b"Bearer sk-one", b"bearer sk-two", b"BEARER  sk-one "])
def test_a_known_key_passes_every_time(sent: bytes) -> None:
    keys = Keys(["sk-one", "sk-two"])
    for _ in range(3):
        keys.check(sent)


@pytest.mark.parametrize(
    "sent", [b"", b"sk-one", b"Basic sk-one", b"Bearer", b"Bearer sk-on", b"Bearer sk-one2", b"\0"]
)
def test_anything_else_is_a_401_whatever_was_accepted_before(sent: bytes) -> None:
    keys = Keys(["sk-one"])
    for _ in range(2):
        with pytest.raises(ApiError) as refused:
            keys.check(sent)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
        assert refused.value.headers["www-authenticate"] == "Bearer"
        keys.check(b"Bearer sk-one")
