"""What is served is one description, whether the command line made it or a file."""

from pathlib import Path

import pytest

from gateway.config.reading import ConfigError
from gateway.plan import Plan, UpstreamPlan, differences, make_plan
from gateway.record.recorder import RecordPlan
from gateway.settings import Settings, SettingsError

FILE = """
models:
  chat: {target: qwen}
  also: {target: qwen}
  large: {target: remote}
targets:
  qwen: {engine: native, model: ./qwen, replicas: 2, threads: 3, max_wait: 5s, tool_parser: none}
  next: {engine: vllm, adapter: ./b, vllm_args: {tensor_parallel_size: 2}}
  lawyer: {engine: native, model: ./qwen, adapter: ./a}
  far: {engine: native, workers: ["tcp://10.0.0.5:9100"], secret_env: FLEET_SECRET}
  remote: {engine: openai, urls: ["http://10.0.0.6:8000"], model: Qwen/Qwen2.5-7B, api_key_env: REMOTE_KEY}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEET_SECRET", "s")
    monkeypatch.setenv("REMOTE_KEY", "sk")
    path = tmp_path / "penstock.yaml"
    path.write_text(FILE)
    return path


def test_a_command_line_is_a_plan_with_one_target() -> None:
    settings = Settings(model="./qwen", replicas=2)
    assert make_plan(settings) == Plan({"w": settings})
    passing = make_plan(Settings(upstream=("http://a",), served_model_name="m", placement="least-load"))
    group = UpstreamPlan(urls=("http://a",), placement="least-load")
    assert passing == Plan(upstreams={"upstream": group}, names={"m": "upstream"})
    assert make_plan(Settings(upstream=("http://a",))).names is None
    recorded = RecordPlan(path="./log", content="redacted")
    for upstream in ((), ("http://a",)):
        assert make_plan(Settings(upstream=upstream, record="./log", record_content="redacted")).record == recorded


def test_a_file_is_a_plan_with_its_targets_as_the_command_line_would_say_them(file: Path) -> None:
    base = Settings(config=str(file), port=1, failover_timeout=3.0)
    plan = make_plan(base)
    qwen = Settings(
        config=str(file), port=1, failover_timeout=3.0, served_model_name="qwen", model="./qwen", replicas=2, threads=3,
        max_wait=5.0, tool_parser="none",
    )  # fmt: skip
    assert plan.natives["qwen"] == qwen
    assert plan.natives["next"].engine == "vllm" and plan.natives["next"].vllm_args == '{"tensor_parallel_size":2}'
    assert plan.natives["next"].adapter == ("adapter=./b",) and plan.natives["next"].merged_adapter is None
    assert (plan.natives["lawyer"].merged_adapter, plan.natives["qwen"].merged_adapter) == ("./a", None)
    assert plan.natives["far"].worker == ("tcp://10.0.0.5:9100",)
    assert plan.natives["far"].worker_secret_env == "FLEET_SECRET"
    remote = UpstreamPlan(urls=("http://10.0.0.6:8000",), model="Qwen/Qwen2.5-7B", key_env="REMOTE_KEY")
    assert plan.upstreams == {"remote": remote}
    assert plan.names == {"chat": "qwen", "also": "qwen", "large": "remote"}
    assert plan.names_of("qwen") == ["chat", "also"]
    assert (plan.started_here, plan.gpus_before("next"), plan.gpus_before("far")) == (4, 2, 5)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"model": "./other"}, "MODEL"),
        ({"replicas": 2}, "--replicas"),
        ({"upstream": ("http://a",)}, "--upstream"),
        ({"engine": "vllm"}, "--engine"),
        ({"adapter": ("a=./a",)}, "--adapter"),
        ({"served_model_name": "x"}, "--served-model-name"),
        ({"record": "./log"}, "--record"),
    ],
)
def test_what_the_file_says_cannot_be_said_beside_it(file: Path, beside: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^{named} can't be given beside --config"):
        make_plan(Settings(config=str(file), **beside))  # type: ignore[arg-type]


def test_secrets_that_are_not_there_are_faults_with_their_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEET_SECRET")
    monkeypatch.setenv("REMOTE_KEY", " ")
    with pytest.raises(ConfigError) as raised:
        make_plan(Settings(config=str(file)))
    first, second = raised.value.shown
    assert first == f"{file}:10: targets.far.secret_env: the environment variable FLEET_SECRET is empty or not set"
    assert second.startswith(f"{file}:11: targets.remote.api_key_env: ") and "REMOTE_KEY has no key in it" in second


def test_what_changes_is_told_in_words(file: Path) -> None:
    settings = Settings(config=str(file))
    before = make_plan(settings)
    text = FILE.replace("threads: 3", "threads: 4, dtype: float32").replace("  also: {target: qwen}\n", "")
    text = text.replace("large: {target: remote}", "large: {target: next}\n  new: {target: more}")
    file.write_text(f"{text}  more: {{engine: openai, urls: ['http://b']}}\n")
    assert differences(before, make_plan(settings)) == [
        "target qwen changed: dtype, threads", "target more added", "model also removed",
        "model large: leads to next now", "model new added",
    ]  # fmt: skip
    assert differences(before, before) == []
    file.write_text(FILE.replace("qwen: {engine: native, model", "qwen: {engine: vllm, model"))
    assert differences(before, make_plan(settings)) == ["target qwen changed: engine"]


def test_an_adapter_of_our_own_engine_needs_a_file_and_workers_of_ours(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"--adapter needs --engine vllm\. .* a target in a file \(--config\)"):
        make_plan(Settings(adapter=("a=./a",)))
    file.write_text(FILE.replace("workers:", "adapter: ./a, workers:"))
    with pytest.raises(ConfigError, match=r"targets\.far: adapter is for workers .* MODEL --adapter \./a"):
        make_plan(Settings(config=str(file)))


def test_a_model_beside_upstreams_needs_a_file() -> None:
    with pytest.raises(SettingsError, match="or --config"):
        make_plan(Settings(model="m", upstream=("http://a",)))
