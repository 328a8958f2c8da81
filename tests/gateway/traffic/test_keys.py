"""Keys: who passes, who doesn't, and what the command makes."""

import io
import re
from hashlib import sha256

import pytest

import penstock
from gateway.traffic import keys as keys_module
from gateway.traffic.keys import ANYBODY, Key, KeyHash, Keyring, hash_key, new_key, parse_hash, plain_keys
from gateway.traffic.limits.limit import Account, Limits, Rate
from gateway.wire.errors import ApiError


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def ring(*keys: str, clock: Clock | None = None, **scopes: object) -> Keyring:
    made = [(hash_key(key.encode()), Key(id=f"key-{index}", **scopes)) for index, key in enumerate(keys)]  # type: ignore[arg-type]
    return Keyring(made, clock or Clock())


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def refused(keyring: Keyring, authorization: bytes) -> ApiError:
    with pytest.raises(ApiError) as error:
        keyring.check(authorization)
    assert (error.value.status, error.value.code) == (401, "invalid_api_key")
    assert error.value.headers["www-authenticate"] == "Bearer"
    return error.value


def test_a_client_can_stand_back_and_not_push_in() -> None:
    key = Key(id="a", priority=3)
    assert [key.rank(wanted) for wanted in (None, 0, 2, -2)] == [3, 3, 1, 3]
    assert [ANYBODY.rank(wanted) for wanted in (None, 2, -2)] == [0, -2, 2]
    assert key.rank(2**63 - 1) > -(2**63) and ANYBODY.rank(-(2**63)) < 2**63


def test_an_empty_ring_lets_everybody_in() -> None:
    assert not Keyring()
    assert Keyring().check(b"") is ANYBODY
    assert ANYBODY.accounts("chat") == ()
    ANYBODY.allow("chat")


def test_keys_of_all_kinds_are_told_apart_every_time() -> None:
    ours, foreign, plain = [new_key() for _ in range(3)], ["sk-one", "sk-two"], "sk-three"
    keyring = ring(*ours, *foreign)
    for _ in range(3):
        assert [keyring.check(bearer(key)).id for key in (*ours, *foreign)] == [f"key-{index}" for index in range(5)]
        assert keyring.check(f"bEARER  {ours[1]} ".encode()).id == "key-1"
    keyring = Keyring([(parse_hash(f"sha256:{sha256(plain.encode()).hexdigest()}"), Key(id="plain"))])
    assert keyring.check(bearer(plain)).id == "plain"
    assert Keyring(plain_keys([plain, ours[0]])).check(bearer(ours[0])) is ANYBODY


@pytest.mark.parametrize(
    "sent", [b"", b"sk-one", b"Basic sk-one", b"Bearer", b"Bearer sk-on", b"Bearer sk-one2", b"\0"]
)
def test_anything_else_is_a_401_whatever_was_accepted_before(sent: bytes) -> None:
    keyring = ring("sk-one", new_key())
    for _ in range(2):
        refused(keyring, sent)
        keyring.check(b"Bearer sk-one")


def test_a_key_with_anothers_salt_is_none() -> None:
    key = new_key()
    keyring = ring(key)
    refused(keyring, bearer(key[:-1] + ("a" if key[-1] != "a" else "b")))
    refused(keyring, bearer(new_key()))
    assert refused(keyring, b"").message.startswith("No API key was sent")


def test_a_key_ends_when_it_expires_even_if_it_was_the_latest() -> None:
    clock = Clock()
    keyring = ring("sk-one", clock=clock, expires=1_010.0)
    assert keyring.check(b"Bearer sk-one").id == "key-0"
    clock.now = 1_010.0
    for _ in range(2):
        assert refused(keyring, b"Bearer sk-one").message == "The API key has expired."


def test_those_that_were_seen_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "_SEEN", 2)
    keyring = ring("sk-one")
    for spaces in range(10):
        assert keyring.check(b"Bearer " + b" " * spaces + b"sk-one").id == "key-0"


def test_a_forbidden_model_is_a_403_whether_it_exists_or_not() -> None:
    key = Key(id="a", models=frozenset({"chat"}))
    key.allow("chat")
    for model in ("other", "none", ""):
        with pytest.raises(ApiError) as error:
            key.allow(model)
        assert (error.value.status, error.value.code, error.value.param) == (403, "model_not_allowed", "model")
        assert error.value.message == f"This API key may not use the model '{model}'."


def test_a_request_counts_for_the_key_and_for_the_key_with_its_model() -> None:
    limits, chat = Limits(requests=Rate(600, 60)), Limits(concurrent=2)
    key = Key(id="a", limits=limits, model_limits={"chat": chat})
    assert key.accounts("other") == (Account("a", limits),)
    assert key.accounts("chat") == (Account("a", limits), Account("a/chat", chat))
    assert Key(id="a", model_limits={"chat": chat}).accounts("other") == ()


@pytest.mark.parametrize("text", ["", "sha256:", "md5:00", f"sha256:{'0' * 63}", f"sha256:a b:{'0' * 64}", "0" * 64])
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="penstock key makes it"):
        parse_hash(text)


def test_hashes_are_salted_and_read_as_they_are_written() -> None:
    assert hash_key(b"sk-one") != hash_key(b"sk-one")
    for made in (hash_key(b"sk-one"), hash_key(b"sk-one", "salt"), KeyHash("", bytes(32))):
        assert parse_hash(str(made)) == made


def test_the_command_makes_a_key_and_its_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert penstock.main(["key", "new", "team-a"]) == 0
    key, entry = capsys.readouterr().out.splitlines()
    match = re.fullmatch(r'- \{id: team-a, hash: "(.*)"\}', entry)
    assert match is not None
    assert Keyring([(parse_hash(match[1]), Key(id="team-a"))]).check(bearer(key)).id == "team-a"


@pytest.mark.parametrize("salt", [None, "all-the-same"])
def test_the_command_hashes_a_key(
    salt: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-one\n"))
    assert penstock.main(["key", "hash", *(["--salt", salt] if salt is not None else [])]) == 0
    made = parse_hash(capsys.readouterr().out.strip())
    assert salt is None or made.salt == salt
    assert Keyring([(made, Key(id="a"))]).check(b"Bearer sk-one").id == "a"


@pytest.mark.parametrize(("typed", "options"), [("\n", []), ("sk one\n", []), ("sk-one\n", ["--salt", "a b"])])
def test_the_command_refuses_what_is_no_key_or_salt(
    typed: str, options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert penstock.main(["key", "hash", *options]) == 1
    assert capsys.readouterr().err.startswith("penstock: error:")
