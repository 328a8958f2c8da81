"""A configuration file: what it may say, and that each fault has its line, its path and what would be right."""

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.document import Document, Fault, read
from gateway.config.reading import ConfigError, decode_config, read_config
from gateway.config.structs import NativeTarget, OpenAITarget, VllmTarget, schema
from penstock import main

GOOD = """
models:
  chat: {target: qwen}
  large:
    variants: {only: {target: remote}}
targets:
  qwen: {engine: native, model: ./qwen, replicas: 2, device: cpu, kv_memory: 2GiB, ttft: 500ms, gpu_memory: 80%}
  next: {engine: vllm, model: Qwen/Qwen3-8B, vllm_args: {tensor_parallel_size: 2}}
  far: {engine: native, workers: ["tcp://10.0.0.5:9100"], secret_env: FLEET_SECRET}
  remote: {engine: openai, urls: ["http://10.0.0.6:8000", "dns:vllm:8000"], model: Qwen/Qwen2.5-7B, api_key_env: KEY}
"""
TWO = "models: {c: {variants: {a: {target: t}, b: {target: t}}, rollout: {%s}}}\ntargets: {t: {engine: native}}\n"
REST = "targets: {t: {engine: native}}\n"


def faults(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "penstock.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_config(str(file))
    return [line.removeprefix(f"{file}:") for line in str(raised.value).splitlines()]


def test_a_file_says_what_is_served(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(GOOD)
    config, document = read_config(str(file))
    assert config.models["chat"].plain == "qwen"
    assert config.models["large"].plain is None  # its variant has a name to be told
    assert config.models["large"].route.targets == {"remote"}
    qwen, following, far, remote = config.targets.values()
    assert isinstance(qwen, NativeTarget) and (qwen.replicas, qwen.kv_memory) == (2, 2 << 30)
    assert (qwen.ttft, qwen.gpu_memory) == (0.5, 0.8)
    assert isinstance(following, VllmTarget) and following.vllm_args == {"tensor_parallel_size": 2}
    assert isinstance(far, NativeTarget) and far.workers == ("tcp://10.0.0.5:9100",)
    assert isinstance(remote, OpenAITarget) and remote.model == "Qwen/Qwen2.5-7B"
    assert document.lines["targets", "remote", "urls", 1] == 10


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("models: {c: {target: q}}\n" + REST, "1: models.c.target: there is no target 'q': the targets are t"),
        ("models: {c: {}}\n" + REST, "1: models.c: a model has either target or variants"),
        ("models: {c: {target: t, variants: {a: {target: t}}}}\n" + REST, "1: models.c: a model has either"),
        (
            "models: {c: {variants: {a: {target: t}, b: {target: t}}}}\n" + REST,
            "1: models.c.variants.a: weight is m",
        ),
        (
            "models: {c: {variants: {a: {target: t, weight: -1}}}}\n" + REST,
            "1: models.c.variants.a.weight: expected a",
        ),
        (
            "models: {c: {variants: {a: {target: t, weight: 0}, b: {target: t, weight: 0}}}}\n" + REST,
            "1: models.c.variants: one of the weights",
        ),
        ("models: {c: {variants: {'a b': {target: t}}}}\n" + REST, "1: models.c.variants.a b: a variant's name has"),
        ("models: {c: {variants: {}}}\n" + REST, "1: models.c.variants: at least one"),
        (
            "models: {c: {variants: {a: {target: t, sampling: {temprature: 1}}}}}\n" + REST,
            "1: models.c.variants.a.sampling.temprature: there is no such field; did you mean temperature?",
        ),
        ("models: {c: {target: t, sticky: users}}\n" + REST, "1: models.c.sticky: this is user, session, key, header:"),
        ("models: {c: {target: t, fallback: [q]}}\n" + REST, "1: models.c.fallback[0]: there is no target 'q'"),
        (
            "models: {c: {target: t, fallback: [{target: t, when: [eror]}]}}\n" + REST,
            "1: models.c.fallback[0].when[0]: 'eror' is unknown: it is unavailable, timeout",
        ),
        ("models: {c: {target: t, timeout: {total: 0s}}}\n" + REST, "1: models.c.timeout.total: "),
        (
            "models: {c: {target: t, shadow: [{target: q, sample: 1}]}}\n" + REST,
            "1: models.c.shadow[0].target: ther",
        ),
        (
            "models: {c: {target: t, shadow: [{target: t, sample: 0}]}}\n" + REST,
            "1: models.c.shadow[0].sample: '0' i",
        ),
        ("models: {c: {target: t, rollout: {}}}\n" + REST, "1: models.c.rollout: a rollout is between two variants"),
        (TWO % "guard: [speed]", "1: models.c.rollout.guard[0]: there is no guard 'speed': it is bad_outcome_rate, "),
        (TWO % "guard: []", "1: models.c.rollout.guard: at least one"),
        (TWO % "steps: [50, 5]", "1: models.c.rollout.steps: steps are percentages"),
        (TWO % "alpha: 100%", "1: models.c.rollout.alpha: this is a chance"),
        (TWO % "max_regression: 20%", "1: models.c.rollout.exclude: this has to be at least max_regression"),
        (
            "models: {c: {variants: {a: {target: 5}}}}\n" + REST,
            "1: models.c.variants.a.target: expected text, but this",
        ),
        ("models: {c: {target: t, fallback: [t]}}\n" + REST, "1: models.c.fallback[0]: nothing falls back to the "),
        (
            "models: {c: {target: u, fallback: [{target: t, when: []}]}}\ntargets: {t: {engine: native}, u: {}}\n",
            "1: models.c.fallback[0].when: this is for unavailable, timeout",
        ),
        (
            "models: {c: {target: t, shadow: [{target: t, sample: 1}, {target: t, sample: 1}]}}\n" + REST,
            "1: models.c.shadow[1].target: this target has",
        ),
        (
            "models: {c: {variants: {a: {target: t, weight: .inf}, b: {target: t, weight: 1}}}}\n" + REST,
            "1: models.c.variants.a.weight: expected a number <= 1000000",
        ),
        (TWO % "guard: [uncertainty, hallucination]", "1: models.c.rollout.guard[1]: hallucination is guarded"),
        ("models:\n  c:\n    target: t\n    rollout:\n" + REST, "4: models.c.rollout: nothing stands here"),
        ("models: {c: {target: t}}\nlog:\n" + REST, "2: log: nothing stands here"),
        ("models: {c: {targt: t}}\n" + REST, "1: models.c.targt: there is no such field; did you mean target?"),
        ("models: {c: {target: t}}\nlog: {}\n" + REST, "2: log: path is missing"),
        ("models: {c: {target: t}}\ntargts: {}\n" + REST, "2: targts: there is no such field; did you mean targets?"),
        ("models: {c: {target: t}}\n", "1: targets: targets has to be a mapping"),
        ("models: {c: {target: t}}\ntargets:\n  t:\n    model: x\n", "3: targets.t.engine: engine is missing"),
        ("models: {c: {target: t}}\ntargets:\n  t: {engine: sglang}\n", "3: targets.t.engine: engine 'sglang' is unk"),
        ("models: {c: {target: t}}\ntargets: {t: native}\n", "2: targets.t: a target is a mapping"),
        ("models: {no: {target: t}}\n" + REST, "1: models: no can't be a name here: put it in quotes"),
        ("models: {c: {target: t}, c: {target: t}}\n" + REST, "1: models.c: this stands here twice"),
        ("models: [\n", "2: this is no YAML: "),
        ("models:\n  c: {target: \x07}\n", "2: this is no YAML: it has the character U+0007"),
        ("models: &m {c: *m}\n" + REST, "1: this is nested too deeply, or refers to itself"),
        ("models: " + "[" * 1000, "1: this is nested too deeply"),
        (
            "a: &a [0,0,0,0,0,0,0,0,0]\n" + "".join(f"{b}: &{b} [{f'*{a},' * 9}]\n" for a, b in pairwise("abcdefgh")),
            "1: this is no YAML: with its aliases it has more than 300,000 values",
        ),
        ("- a\n", "1: the file has two sections"),
        ("", "1: the file has two sections"),
    ],
)
def test_faults_have_their_place(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path, text)[0].startswith(fault)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("engine: native, replica: 2", "replica: there is no such field; did you mean replicas?"),
        ("engine: native, replicas: 0", "replicas: expected a whole number >= 1"),
        ("engine: native, replicas: two", "replicas: expected a whole number, but this is text"),
        ("engine: native, device: gpu", "device: 'gpu' is unknown: it is auto, cpu or cuda"),
        ("engine: native, placement: best", "placement: 'best' is unknown: it is held, "),
        ("engine: native, kv_memory: much", "kv_memory: 'much' is no size above 0: write 2GiB"),
        ("engine: native, ttft: soon", "ttft: 'soon' is no duration: write"),
        ("engine: native, ttft: 0", "ttft: this has to be above 0"),
        ("engine: native, gpu_memory: 3", "gpu_memory: '3' is no share"),
        ("engine: native, vllm_args: {}", "vllm_args: there is no such field"),
        ("engine: native, urls: []", "urls: there is no such field"),
        ("engine: native, workers: ['unix:/a', 'unix:/a']", "workers[1]: the same worker was named twice"),
        ("engine: native, workers: ['tcp://a:1']", "workers: workers on tcp:// need secret_env"),
        ("engine: native, workers: ['http://a:1']", "workers[0]: "),
        ("engine: native, workers: ['unix:/a'], replicas: 2", "replicas: replicas are started here"),
        ("engine: vllm, kv_replay: 'tcp://*:1'", "kv_replay: kv_replay needs kv_events"),
        ("engine: openai", "urls or file has to say"),
        ("engine: openai, urls: [x]", "urls[0]: 'x' is no URL of an upstream: write http://"),
        (
            "engine: openai, urls: [http://a, http://b, http://c], kv_events: ['tcp://a:1', 'tcp://b:1']",
            "kv_events: this",
        ),
        (
            "engine: openai, urls: [http://a, http://b], kv_events: ['tcp://a:1']",
            "kv_events[0]: one for all of urls has",
        ),
        ("engine: openai, urls: [http://a], kv_events: [a]", "urls[0]: 'kv=a': after an upstream come kv="),
        ("engine: openai, urls: [http://a], kv_replay: ['tcp://a:1']", "urls[0]: replay= needs kv="),
        ("engine: openai, urls: http://a", "urls: expected a list, but this is text"),
    ],
)
def test_faults_of_targets_have_their_place(tmp_path: Path, target: str, fault: str) -> None:
    found = faults(tmp_path, f"models: {{c: {{target: t}}}}\ntargets:\n  t: {{{target}}}\n")
    assert found[0].startswith(f"3: targets.t{'.' if ':' in fault else ': '}{fault}")


def test_each_server_has_its_kv_events(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    for said, expected in (
        ("kv_events: ['tcp://*:1']", ("http://a kv=tcp://*:1", "http://b kv=tcp://*:1")),
        ("kv_events: ['tcp://a:1', 'tcp://b:2']", ("http://a kv=tcp://a:1", "http://b kv=tcp://b:2")),
        ("kv_events: ['tcp://*:1'], kv_replay: ['tcp://*:2']",
         ("http://a kv=tcp://*:1 replay=tcp://*:2", "http://b kv=tcp://*:1 replay=tcp://*:2")),
        ("", ("http://a", "http://b")),
    ):  # fmt: skip
        file.write_text(
            f"models: {{c: {{target: t}}}}\ntargets:\n  t: {{engine: openai, urls: [http://a, http://b], {said}}}\n"
        )
        target = read_config(str(file))[0].targets["t"]
        assert isinstance(target, OpenAITarget) and target.sources == expected


def test_all_faults_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "targets:\n  a: {engine: x}\n  b: {engine: openai}\nmodels:\n  c: {target: d}\n"
    assert [line.partition(":")[0] for line in faults(tmp_path, text)] == ["2", "3", "5"]


def test_a_model_at_fault_is_there_for_keys_all_the_same(tmp_path: Path) -> None:
    key = f"keys: [{{id: a, hash: 'sha256:{'0' * 64}', models: [c]}}]\n"
    assert len(faults(tmp_path, "models: {c: {target: 5}}\n" + REST + key)) == 1


def test_bytes_that_are_no_text_have_their_line(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_bytes(b"models: {}\ntargets: {\xe9: 1}\n")
    with pytest.raises(ConfigError, match=r"yaml:2: this file can't be read: it is not valid UTF-8"):
        read_config(str(file))


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this file can't be read: No such file"):
        read_config(str(tmp_path / "penstock.yaml"))


def test_the_schema_takes_what_the_reader_takes() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(yaml.safe_load(GOOD), schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"models": {}, "targets": {"a": {"engine": "native", "replica": 1}}}, schema())


WHOLE = """
models:
  a: {target: n, sticky: user, fallback: [r, {target: v, when: [timeout]}], timeout: {first_token: 10s, total: 120},
      content: hash, shadow: [{target: v, sample: 10%}]}
  b: {variants: {s: {target: n}, c: {target: v}},
      rollout: {guard: [ttft], max_regression: 5%, alpha: 0.01, steps: [5, 50.5], dwell: 6h}}
targets:
  n: {engine: native, replicas: 2, kv_memory: 2GiB, gpu_memory: 90%, ttft: 500ms, tpot: 0.05}
  v: {engine: vllm, vllm_args: {x: 1}}
  r: {engine: openai, urls: ["http://h:1"], api_key_env: K}
keys:
  - {id: k, hash: "sha256:s:HASH", models: [a], limits: {requests: 600/min, concurrent: 3, tokens_per_day: 5M},
     priority: 1, expires: "2100-01-31", admin: true}
log: {path: l, content: full, retain: 30d, retain_size: 5GB}
telemetry: {otlp: "http://h:1", sample: 1%}
limits: {redis: "redis://h:1/0", when_away: open}
""".replace("HASH", "0" * 64)
INSTEAD: tuple[Any, ...] = (True, -1, 1.5, "x", "5s", "5%", "600/min", [], {}, None)
# What stands elsewhere in the file or in the world, and more than a value's form, is beyond a JSON schema.
BEYOND = re.compile(
    r"there is no (target|model) |weight is missing|above 0|a rollout is between|is no address|is no URL|looks like|"
    r"kv_|has to be at least max|each above the one|: below 100%|urls or file|"
    r"is (no share|no part|no size|no amount|no date)"
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in entries:
        yield (*path, step)
        yield from _places(inner, (*path, step))


def test_the_schema_and_the_reader_agree_on_files_with_one_thing_changed() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    whole = yaml.safe_load(WHOLE)
    for *above, last in _places(whole):
        for value in INSTEAD:
            changed = deepcopy(whole)
            within = reduce(getitem, above, changed)
            within[last] = value
            found: list[Fault] = []
            decode_config(Document(changed, {}), found)
            valid = validator.is_valid(changed)
            assert valid == (not found) or (valid and BEYOND.search(found[0].message)), ([*above, last], value, found)


def test_the_command_checks_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(GOOD)
    assert main(["config", "check", str(file)]) == 0
    assert "2 models, 4 targets, no faults" in capsys.readouterr().out
    file.write_text(GOOD.replace("native", "nativ", 1))
    assert main(["config", "check", str(file)]) == 1
    assert f"{file}:7: targets.qwen.engine: engine 'nativ' is unknown" in capsys.readouterr().err
    assert main(["config", "schema"]) == 0
    assert '"NativeTarget"' in capsys.readouterr().out


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_every_value_has_a_line(value: object) -> None:
    text = yaml.safe_dump(value)
    document = read(text)
    lines = text.count("\n") + 1
    assert all(1 <= line <= lines for line in document.lines.values())
    if not document.faults:
        assert document.value == value
