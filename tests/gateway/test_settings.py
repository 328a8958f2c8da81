"""The settings of ``penstock serve``."""

import argparse
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.settings import (
    Settings,
    SettingsError,
    add_arguments,
    descriptions,
    flag,
    from_args,
    parse_seconds,
    parse_size,
)


def parse(*words: str) -> Settings:
    parser = argparse.ArgumentParser(prog="penstock serve")
    add_arguments(parser)
    return from_args(parser.parse_args(words))


def test_nothing_said_gives_the_defaults() -> None:
    assert parse() == Settings()
    assert (Settings().host, Settings().port, Settings().max_queue) == ("127.0.0.1", 8000, 4096)


def test_every_field_can_be_said() -> None:
    said = {
        "host": "::1",
        "port": "0",
        "served_model_name": "chat",
        "engine": "vllm",
        "vllm_python": "/opt/vllm/bin/python",
        "vllm_args": "{}",
        "adapter": "legal=./legal",
        "device": "cpu",
        "dtype": "float32",
        "quantization": "int8",
        "max_model_len": "2048",
        "max_running": "8",
        "kv_memory": "2GiB",
        "kv_dtype": "fp8",
        "gpu_memory": "0.8",
        "block_size": "32",
        "threads": "2",
        "ttft": "200ms",
        "tpot": "0.03",
        "replicas": "1",
        "worker": "tcp://10.0.0.6:9100",
        "gateway_processes": "2",
        "worker_secret_env": "SECRET",
        "worker_tls_ca": "ca.pem",
        "worker_timeout": "3",
        "failover_timeout": "20s",
        "placement": "immediate",
        "max_wait": "30",
        "max_queue": "10",
        "max_body": "1MiB",
        "tool_parser": "hermes",
        "reasoning_parser": "none",
        "data_dir": "./state",
        "max_file": "1GiB",
        "batch_concurrency": "16",
        "upstream": "http://10.0.0.5:8000/v1",
        "upstream_file": "./upstreams",
        "upstream_api_key_env": "REMOTE_KEY",
        "upstream_tokenizer": "./tokenizer",
        "upstream_continue": "never",
        "upstream_connect_timeout": "2s",
        "upstream_first_byte_timeout": "60",
        "upstream_idle_timeout": "30",
        "hedge": "2%",
        "api_key_env": "KEYS",
        "drain_timeout": "5s",
        "log_level": "debug",
        "log_format": "json",
        "record": "./log",
        "record_content": "redacted",
        "otlp": "http://10.0.0.7:4318",
        "trace_sample": "5%",
        "kv_events": "tcp://127.0.0.1:5557",
        "kv_replay": "tcp://127.0.0.1:5558",
    }
    assert set(said) | {"model", "config"} == set(Settings.__struct_fields__), "a file stands in for the rest"
    found = parse("./folder", *(word for name, text in said.items() for word in (flag(name), text)))
    assert found == Settings(
        model="./folder",
        host="::1",
        port=0,
        served_model_name="chat",
        engine="vllm",
        vllm_python="/opt/vllm/bin/python",
        vllm_args="{}",
        adapter=("legal=./legal",),
        device="cpu",
        dtype="float32",
        quantization="int8",
        max_model_len=2048,
        max_running=8,
        kv_memory=2 * 2**30,
        kv_dtype="fp8",
        gpu_memory=0.8,
        block_size=32,
        threads=2,
        ttft=0.2,
        tpot=0.03,
        worker=("tcp://10.0.0.6:9100",),
        gateway_processes=2,
        worker_secret_env="SECRET",
        worker_tls_ca="ca.pem",
        worker_timeout=3.0,
        failover_timeout=20.0,
        placement="immediate",
        max_wait=30.0,
        max_queue=10,
        max_body=2**20,
        tool_parser="hermes",
        reasoning_parser="none",
        data_dir="./state",
        max_file=2**30,
        batch_concurrency=16,
        upstream=("http://10.0.0.5:8000/v1",),
        upstream_file="./upstreams",
        upstream_api_key_env="REMOTE_KEY",
        upstream_tokenizer="./tokenizer",
        upstream_continue="never",
        upstream_connect_timeout=2.0,
        upstream_first_byte_timeout=60.0,
        upstream_idle_timeout=30.0,
        hedge=0.02,
        api_key_env="KEYS",
        drain_timeout=5.0,
        log_level="debug",
        log_format="json",
        record="./log",
        record_content="redacted",
        otlp="http://10.0.0.7:4318",
        trace_sample=0.05,
        kv_events="tcp://127.0.0.1:5557",
        kv_replay="tcp://127.0.0.1:5558",
    )


def test_every_field_says_what_it_means() -> None:
    found = descriptions()
    assert list(found) == list(Settings.__struct_fields__)
    assert all(len(text) > 10 for text in found.values())


def test_help_shows_each_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in descriptions().values():
        assert text in shown


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vllm_python": "python"}, "--vllm-python needs --engine vllm"),
        ({"vllm_args": "{}"}, "--vllm-args needs --engine vllm"),
        ({"engine": "turbo"}, "--engine turbo is unknown"),
        ({"port": 65536}, "--port must be between 0 and 65535, not 65536"),
        ({"model": " "}, "MODEL is empty"),
        ({"served_model_name": ""}, "--served-model-name is empty"),
        ({"max_queue": 0}, "--max-queue must be at least 1, not 0"),
        ({"batch_concurrency": 0}, "--batch-concurrency must be at least 1, not 0"),
        ({"data_dir": ""}, "--data-dir is empty"),
        ({"record": ""}, "--record is empty"),
        ({"record_content": "hash"}, "--record-content needs --record"),
        ({"threads": -1}, "--threads must be at least 1, not -1"),
        ({"kv_memory": 0}, "--kv-memory must be at least 1"),
        ({"gpu_memory": 1.5}, "--gpu-memory must be above 0 and at most 1, not 1.5"),
        ({"ttft": 0.0}, "--ttft must be a number of seconds above 0"),
        ({"tpot": float("nan")}, "--tpot must be a number of seconds above 0"),
        ({"drain_timeout": -1.0}, "--drain-timeout must be a number of seconds, 0 or more"),
        ({"drain_timeout": float("inf")}, "--drain-timeout must be a number"),
        ({"kv_replay": "tcp://127.0.0.1:1"}, "--kv-replay needs --kv-events"),
    ],
)
def test_values_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**fields)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu-memory", "90"], "'90' is no share: write a number above 0 and at most 1, such as 0.9"),
        (["--kv-memory", "lots"], "'lots' is no size above 0: write 2GiB"),
        (["--kv-memory", "0"], "'0' is no size above 0"),
        (["--port", "http"], "'http' is no whole number"),
        (["--ttft", "soon"], "'soon' is no duration"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_words_that_make_no_sense(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(Settings(port=1)), type=Settings) == Settings(port=1)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("2GiB", 2**31), ("500MB", 500_000_000), ("1.5G", 1_500_000_000), ("2 kib", 2048), ("10m", 10**7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert parse_size(text) > 0
    except ValueError as error:
        assert "write 2GiB" in str(error)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1", 1.0), ("1.5s", 1.5), ("200ms", 0.2), (".25", 0.25), ("0", 0.0), ("2m", 120.0), ("1.5h", 5400.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1y", "inf", "nan", "1e3"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_seconds(text)
