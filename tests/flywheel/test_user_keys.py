"""`flywheel.user_keys` and `flywheel.content`: what is kept, and who can read it."""

from pathlib import Path

import pytest

from flywheel.content import MODES, keep, keep_feedback
from flywheel.record import VERSION, Content, Feedback
from flywheel.user_keys import UserKeys

ASKED = b'{"messages":[{"role":"user","content":"I am a@example.com"}]}'
SAID = b'[{"role":"assistant","content":"Hello a@example.com"}]'
STREAM = (
    b'data: {"choices":[{"delta":{"content":"Hello a@exam"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"ple.com"}}]}\n\n'
)


@pytest.fixture
def keys(tmp_path: Path) -> UserKeys:
    return UserKeys(tmp_path / "keys.sqlite")


def test_only_the_users_key_opens_what_is_sealed(tmp_path: Path, keys: UserKeys) -> None:
    sealed = keys.seal("ann", {"input": ASKED, "output": SAID})
    assert b"example" not in sealed
    assert keys.unseal("ann", sealed) == {"input": ASKED, "output": SAID}
    assert keys.unseal("bob", sealed) is None
    keys.seal("bob", {})
    assert keys.unseal("bob", sealed) is None
    other = UserKeys(tmp_path / "keys.sqlite")
    assert other.unseal("ann", sealed) == {"input": ASKED, "output": SAID}
    assert keys.seal("ann", {}) != keys.seal("ann", {})


@pytest.mark.parametrize("place", [0, 1, 20, -1])
def test_what_was_tampered_with_is_not_opened(keys: UserKeys, place: int) -> None:
    sealed = bytearray(keys.seal("ann", {"input": ASKED}))
    sealed[place] ^= 1
    assert keys.unseal("ann", bytes(sealed)) is None
    assert keys.unseal("ann", bytes(sealed[:place])) is None


def test_an_erased_users_key_is_gone_from_the_file(tmp_path: Path, keys: UserKeys) -> None:
    sealed = keys.seal("ann", {"input": ASKED})
    keys.seal("bob", {})
    (key,) = keys._file.execute("SELECT key FROM keys WHERE user = ?", [keys._name("ann")]).fetchone()
    assert key in (tmp_path / "keys.sqlite").read_bytes()
    assert keys.erased_at("ann") == 0
    assert keys.erase("ann")
    assert not keys.erase("ann")
    assert keys.unseal("ann", sealed) is None
    assert keys.erased_at("ann") > 0
    assert key not in (tmp_path / "keys.sqlite").read_bytes()
    assert b"ann" not in (tmp_path / "keys.sqlite").read_bytes()
    again = keys.seal("ann", {"input": b"new"})
    assert keys.unseal("ann", again) == {"input": b"new"}
    assert keys.unseal("ann", sealed) is None


def test_another_process_notices_an_erasure(tmp_path: Path, keys: UserKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    other = UserKeys(tmp_path / "keys.sqlite")
    keys.seal("ann", {})
    other.erase("ann")
    monkeypatch.setattr("flywheel.user_keys.monotonic", lambda: 1e12)
    assert other.unseal("ann", keys.seal("ann", {"input": b"new"})) == {"input": b"new"}


def test_many_users_are_not_all_remembered(keys: UserKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flywheel.user_keys._MOST_KNOWN", 3)
    sealed = [keys.seal(f"user{number}", {"n": b"%d" % number}) for number in range(10)]
    assert len(keys._known) <= 3
    assert [keys.unseal(f"user{number}", one) for number, one in enumerate(sealed)] == [
        {"n": b"%d" % number} for number in range(10)
    ]


def test_hashes_are_keyed(tmp_path: Path, keys: UserKeys) -> None:
    assert keys.hash(b"x") == keys.hash(b"x") != keys.hash(b"y")
    assert UserKeys(tmp_path / "other.sqlite").hash(b"x") != keys.hash(b"x")


def test_modes_keep_what_they_say(keys: UserKeys) -> None:
    assert keep("full", ASKED, SAID) == Content("full", ASKED, SAID)
    assert keep("none", ASKED, SAID, user="ann", keys=keys) == Content("none")
    redacted = keep("redacted", ASKED, SAID)
    assert redacted.input == ASKED.replace(b"a@example.com", b"[EMAIL]")
    assert redacted.output == SAID.replace(b"a@example.com", b"[EMAIL]")
    hashed = keep("hash", ASKED, None, keys=keys)
    assert hashed == Content("hash", input_hash=keys.hash(ASKED))
    with pytest.raises(ValueError, match="keys' file"):
        keep("hash", ASKED, SAID)


def test_what_comes_in_pieces_is_redacted_whole() -> None:
    assert b"[EMAIL]" in (keep("redacted", None, STREAM).output or b"")


@pytest.mark.parametrize("mode", MODES)
def test_a_users_texts_are_nowhere_in_the_clear(keys: UserKeys, mode: str) -> None:
    content = keep(mode, ASKED, SAID, user="ann", keys=keys)  # type: ignore[arg-type]
    assert (content.input, content.output) == (None, None)
    assert (content.sealed is not None) == (mode in ("full", "redacted"))
    if content.sealed is not None:
        opened = keys.unseal("ann", content.sealed)
        assert opened is not None
        assert (b"[EMAIL]" in opened["input"]) == (mode == "redacted")


@pytest.mark.parametrize("mode", MODES)
def test_feedback_keeps_as_much(keys: UserKeys, mode: str) -> None:
    feedback = Feedback(VERSION, "req_1", 5, 1.0, "bad", "ask a@example.com", None, "why?", "key", "ann")
    open_ = keep_feedback(mode, feedback)  # type: ignore[arg-type]
    expected = {"full": "ask a@example.com", "redacted": "ask [EMAIL]"}.get(mode)
    assert (open_.score, open_.label, open_.correction, open_.preferred) == (1.0, "bad", expected, None)
    sealed = keep_feedback(mode, feedback, keys)  # type: ignore[arg-type]
    assert (sealed.correction, sealed.comment) == (None, None)
    opened = None if sealed.sealed is None else keys.unseal("ann", sealed.sealed)
    assert opened == (None if expected is None else {"correction": expected.encode(), "comment": b"why?"})
