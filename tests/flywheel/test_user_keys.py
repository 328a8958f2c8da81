"""`flywheel.user_keys` and `flywheel.content`: what is kept, and who can read it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from flywheel.content import MODES, keep, keep_feedback, keep_fields, keep_json
from flywheel.record import VERSION, Content, Feedback, Record, Sampling
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
    (key,) = keys._file.execute("SELECT key FROM keys WHERE user = ?", [keys.owner("ann")]).fetchone()
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


def test_an_erased_key_is_nowhere_on_the_disk(tmp_path: Path, keys: UserKeys) -> None:
    """Not in the journal either, and the next user's key doesn't bring it back."""
    for number in range(200):
        keys.seal(f"user{number}", {})
    erased = [f"user{number}" for number in range(0, 200, 7)]
    found = [
        keys._file.execute("SELECT key FROM keys WHERE user = ?", [keys.owner(user)]).fetchone() for user in erased
    ]
    for user in erased:
        keys.erase(user)
        disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert not any(key in disk for (key,) in found[: erased.index(user) + 1])
    keys.seal("new", {})
    assert keys._file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_killed_process_leaves_all_keys_behind(tmp_path: Path) -> None:
    """Killed amid its changes, which is what the journal is for; each says which users it has a key for before."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom flywheel.user_keys import UserKeys\n"
        "keys, round = UserKeys(Path(sys.argv[1])), sys.argv[2]\n"
        "for number in range(100_000):\n"
        "    sealed = keys.seal(f'{round}-{number}', {'n': b'x'})\n"
        "    print(f'{round}-{number}', sealed.hex(), flush=True)\n"
        "    if number % 5 == 4:\n        keys.erase(f'{round}-{number - 2}')\n"
    )
    path = tmp_path / "keys.sqlite"
    for round in range(3):
        command = [sys.executable, "-c", program, str(path), str(round)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(20 + 37 * round)]
            process.kill()
            lines += process.stdout.read().splitlines()
        keys = UserKeys(path)
        assert keys._file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for line in lines:
            user, _, sealed = line.decode().strip().partition(" ")
            if len(sealed) % 2 == 0 and int(user.partition("-")[2]) % 5 != 2:
                assert keys.unseal(user, bytes.fromhex(sealed)) == {"n": b"x"}
        keys.close()


def test_a_durable_key_is_on_the_disk_first(tmp_path: Path) -> None:
    keys = UserKeys(tmp_path / "keys.sqlite", durable=True)
    assert keys._file.execute("PRAGMA synchronous").fetchone() == (2,)
    keys.seal("ann", {})
    keys.erase("ann")
    assert keys._file.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_user_may_be_known_by_what_stands_for_the_name(keys: UserKeys) -> None:
    sealed = keys.seal("ann", {"n": b"x"})
    assert keys.open(keys.owner("ann"), sealed) == {"n": b"x"}
    assert keys.open(keys.owner("bob"), sealed) is None
    keys.erase("ann")
    assert keys.open(keys.owner("ann"), sealed) is None


def test_threads_share_the_keys(keys: UserKeys) -> None:
    with ThreadPoolExecutor(8) as threads:
        users = [f"user{number % 50}" for number in range(1000)]
        sealed = list(threads.map(lambda user: keys.seal(user, {"user": user.encode()}), users))
        opened = list(threads.map(keys.unseal, users, sealed))
    assert opened == [{"user": user.encode()} for user in users]


def test_another_process_notices_an_erasure(tmp_path: Path, keys: UserKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    other = UserKeys(tmp_path / "keys.sqlite")
    keys.seal("ann", {})
    other.erase("ann")
    assert other.unseal("ann", keys.seal("ann", {})) is None
    monkeypatch.setattr("flywheel.user_keys.monotonic", lambda: 1e12)
    assert other.unseal("ann", keys.seal("ann", {"input": b"new"})) == {"input": b"new"}


def test_nothing_is_sealed_under_keys_that_nobody_has(
    tmp_path: Path, keys: UserKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is deleted under the process that uses it, and for a while none can be made."""
    keys.seal("ann", {})
    monkeypatch.setattr("flywheel.user_keys.monotonic", iter(range(10**9, 2 * 10**9, 10)).__next__)
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rename(tmp_path.with_name("moved"))
    tmp_path.write_text("a file where the folder should be")
    for _ in range(2):
        with pytest.raises(OSError):
            keys.seal("ann", {})
    tmp_path.unlink()
    sealed = keys.seal("ann", {"input": b"new"})
    assert UserKeys(tmp_path / "keys.sqlite").unseal("ann", sealed) == {"input": b"new"}


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
    assert b"[EMAIL]" in (keep("redacted", None, STREAM + b'data: {"choices": [{"delta": {"con').output or b"")


def test_pieces_that_nobody_can_put_together_are_not_kept() -> None:
    other = STREAM.replace(b"choices", b"others")
    assert keep("redacted", ASKED, other) == Content("redacted", keep("redacted", ASKED, None).input)
    assert keep("full", None, other).output == other


def test_equal_answers_have_equal_hashes(keys: UserKeys) -> None:
    whole = b'[{"role":"assistant","content":"Hello a@example.com"}]'
    assert keep("hash", None, STREAM, keys=keys) == keep("hash", None, whole, keys=keys)


def test_json_is_kept_as_a_mode_says() -> None:
    kept = [keep_json(mode, ASKED) for mode in MODES]
    assert kept == [ASKED, ASKED.replace(b"a@example.com", b"[EMAIL]"), None, None]


@pytest.mark.parametrize("mode", MODES)
def test_a_records_own_fields_keep_no_more_than_its_content(mode: str) -> None:
    record = Record(VERSION, "req_1", 5, "invalid", user="ann@example.com", session="chat 7", embedding=b"e")
    record.tags = {"of": "a@example.com", "a@example.com": "of"}
    record.sampling = Sampling(temperature=1.0, stop_sequences=("a@example.com", "\n"))
    record.error_message = "'a@example.com' is no number"
    keep_fields(mode, record)  # type: ignore[arg-type]
    keep_fields(mode, record)  # type: ignore[arg-type]
    email = {"full": "a@example.com", "redacted": "[EMAIL]"}.get(mode)
    assert record.tags == ({"of": email, email: "of"} if email else None)
    assert record.sampling == Sampling(temperature=1.0, stop_sequences=(email, "\n") if email else ())
    assert record.error_message == (f"'{email}' is no number" if email else "")
    assert record.embedding == (None if mode == "none" else b"e")
    assert (record.user, record.session) == ("ann@example.com", "chat 7")  # what it is to be erased by
    failed = Record(VERSION, "req_1", 5, "failed", error_message="a@example.com can't be reached")
    keep_fields(mode, failed)  # type: ignore[arg-type]
    assert failed.error_message == f"{'[EMAIL]' if mode != 'full' else 'a@example.com'} can't be reached"


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
    labelled = keep_feedback(mode, msgspec.structs.replace(feedback, label="a@example.com"))  # type: ignore[arg-type]
    assert labelled.label == ("a@example.com" if mode == "full" else "[EMAIL]")
    open_ = keep_feedback(mode, feedback)  # type: ignore[arg-type]
    expected = {"full": "ask a@example.com", "redacted": "ask [EMAIL]"}.get(mode)
    assert (open_.score, open_.label, open_.correction, open_.preferred) == (1.0, "bad", expected, None)
    sealed = keep_feedback(mode, feedback, keys)  # type: ignore[arg-type]
    assert (sealed.correction, sealed.comment) == (None, None)
    opened = None if sealed.sealed is None else keys.unseal("ann", sealed.sealed)
    assert opened == (None if expected is None else {"correction": expected.encode(), "comment": b"why?"})
