"""Keys in a configuration file, and where their limits are counted."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.config.reading import read_config
from gateway.config.structs import schema
from gateway.plan import Plan, differences, keyring, make_plan
from gateway.settings import Settings, SettingsError
from gateway.traffic.keys import ANYBODY, Key
from gateway.traffic.limits.limit import Limits, Rate
from gateway.wire.errors import ApiError
from tests.gateway.config.test_reading import faults

REST = "models: {chat: {target: t}, code: {target: t}}\ntargets: {t: {engine: openai, urls: ['http://x']}}\n"
HASH = f"sha256:salt:{sha256(b'salt:sk-one').hexdigest()}"
KEYS = f"""
keys:
  - id: team-a
    hash: {HASH}
    models: [chat]
    limits: {{requests: 600/min, tokens: 200k/min, concurrent: 20, tokens_per_day: 5M}}
    model_limits: {{chat: {{requests: 10/s}}}}
    priority: 1
    expires: 2100-01-31
    admin: true
  - {{id: team-b, hash: "sha256:{"0" * 64}", expires: "2100-01-31T12:00:00+01:00"}}
limits: {{redis: "redis://10.0.0.9:6379/0", when_away: closed}}
"""


def plan(tmp_path: Path, text: str) -> Plan:
    file = tmp_path / "penstock.yaml"
    file.write_text(text)
    return make_plan(Settings(config=str(file)))


def test_keys_are_read(tmp_path: Path) -> None:
    made = plan(tmp_path, REST + KEYS)
    (_, one), (_, other) = made.keys
    assert one == Key(
        id="team-a",
        models=frozenset({"chat"}),
        admin=True,
        expires=datetime(2100, 1, 31, tzinfo=UTC).timestamp(),
        priority=1,
        limits=Limits(requests=Rate(600, 60), tokens=Rate(200_000, 60), concurrent=20, tokens_per_day=5_000_000),
        model_limits={"chat": Limits(requests=Rate(10, 1))},
    )
    assert other == Key(id="team-b", expires=datetime(2100, 1, 31, 11, tzinfo=UTC).timestamp())
    assert made.counting.when_away == "closed"
    assert keyring(Settings(), made).check(b"Bearer sk-one") == one
    jsonschema.validate(yaml.safe_load((REST + KEYS).replace("2100-01-31\n", "'2100-01-31'\n")), schema())


def test_keys_of_the_environment_go_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_KEYS", "sk-two, sk-three")
    made = keyring(Settings(api_key_env="CLIENT_KEYS"), plan(tmp_path, REST + KEYS))
    assert made.check(b"Bearer sk-one").id == "team-a"
    assert made.check(b"Bearer sk-three") is ANYBODY
    with pytest.raises(ApiError):
        made.check(b"Bearer sk-four")


def test_what_changes_is_said_without_any_hash(tmp_path: Path) -> None:
    before = plan(tmp_path, REST + KEYS)
    after = plan(tmp_path, REST + KEYS.replace("salt:", "salz:").replace("20,", "30,").replace("team-b", "team-c"))
    assert differences(before, after) == [
        "key team-a changed: hash, limits",
        "key team-b removed",
        "key team-c added",
    ]
    assert differences(before, before) == []
    assert differences(before, plan(tmp_path, REST + KEYS.replace("closed", "open"))) == ["limits changed"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("keys: {a: 1}", "3: keys: keys are a list"),
        ("keys: {}", "3: keys: keys are a list"),  # whatever is no list of keys lets nobody in
        ("keys: false", "3: keys: keys are a list"),
        ("keys:", "3: keys: nothing stands here"),
        ("keys: []", "3: keys: at least one key has to be there"),
        ("limits: []", "3: limits: expected a mapping"),
        (f"keys: [{{id: a, hash: {HASH}, priority: {2**70}}}]", "3: keys[0].priority: expected a whole number <= "),
        (f"keys:\n- id: a\n  hash: {HASH}\n  expires: 2027-13-01", "6: keys[0].expires: '2027-13-01' is no date"),
        ("keys: [5]", "3: keys[0]: expected a mapping, but this is a whole number"),
        ("keys: [{id: a}]", "3: keys[0]: hash is missing"),
        ("keys:\n- {id: a, hash: sk-one}", "4: keys[0].hash: this is no hash of a key: it looks like sha256:SALT"),
        (f"keys: [{{id: a b, hash: {HASH}}}]", "3: keys[0].id: an id has up to 64 letters"),
        (
            f"keys: [{{id: a, hash: {HASH}, limit: 1}}]",
            "3: keys[0].limit: there is no such field; did you mean limits?",
        ),
        (
            f"keys: [{{id: a, hash: {HASH}, limits: {{request: 1}}}}]",
            "3: keys[0].limits.request: there is no such field; did you mean requests?",
        ),
        (
            f"keys: [{{id: a, hash: {HASH}, limits: {{tokens: 600}}}}]",
            "3: keys[0].limits.tokens: '600' is no rate: write 600/min",
        ),
        (
            f"keys: [{{id: a, hash: {HASH}, limits: {{concurrent: 0}}}}]",
            "3: keys[0].limits.concurrent: expected a whole number >= 1",
        ),
        (
            f"keys: [{{id: a, hash: {HASH}, limits: {{tokens_per_day: many}}}}]",
            "3: keys[0].limits.tokens_per_day: 'many' is no amount above 0",
        ),
        (
            f"keys: [{{id: a, hash: {HASH}, model_limits: {{chat: {{}}, code: {{requests: 5}}}}}}]",
            "3: keys[0].model_limits.code.requests: '5' is no rate",
        ),
        (f"keys: [{{id: a, hash: {HASH}, models: [chat, other]}}]", "3: keys[0].models[1]: there is no model 'other'"),
        (
            f"keys: [{{id: a, hash: {HASH}, model_limits: {{other: {{}}}}}}]",
            "3: keys[0].model_limits.other: there is no",
        ),
        (f"keys: [{{id: a, hash: {HASH}, expires: soon}}]", "3: keys[0].expires: 'soon' is no date: write 2027-01-31"),
        (
            f"keys:\n- {{id: a, hash: {HASH}}}\n- {{id: b, hash: {HASH}}}",
            "5: keys[1].hash: another key has the same hash",
        ),
        ("limits: {store: redis}", "3: limits.store: there is no such field"),
        ("limits: {redis: 'http://x'}", "3: limits.redis: an address of Redis looks like"),
        ("limits: {redis: 'redis://['}", "3: limits.redis: "),
        ("limits: {redis: 'redis://:secret@x'}", "3: limits.redis: no password stands in a file"),
        ("limits: {redis: 'redis://x', redis_env: X}", "3: limits.redis_env: redis and redis_env can't both"),
        (
            "limits: {redis: 'redis://x', when_away: ajar}",
            "3: limits.when_away: 'ajar' is unknown: it is open or closed",
        ),
        ("limits: {when_away: closed}", "3: limits.when_away: this is about a Redis"),
    ],
)
def test_faults_have_their_place(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path, REST + text)[0].startswith(fault)


def test_an_address_in_the_environment_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = REST + "limits: {redis_env: PENSTOCK_REDIS}"
    with pytest.raises(SettingsError, match=r"limits.redis_env: .*PENSTOCK_REDIS has no key in it"):
        plan(tmp_path, text)
    monkeypatch.setenv("PENSTOCK_REDIS", "redis://:secret@x")
    assert plan(tmp_path, text).counting.redis_env == "PENSTOCK_REDIS"


def test_without_the_sections_everybody_may_ask(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(REST)
    config, _ = read_config(str(file))
    assert config.keys == ()
    assert config.limits.redis is None
