"""Where telemetry goes: options before the file, the file before the environment."""

from pathlib import Path
from typing import Any

import pytest

from gateway.config.reading import ConfigError, read_config
from gateway.config.telemetry import Telemetry
from gateway.plan import make_plan
from gateway.settings import Settings, SettingsError
from gateway.telemetry import plan as plans
from gateway.telemetry.plan import TelemetryPlan, parse_headers, telemetry_plan

HERE = "http://127.0.0.1:4318"


def planned(section: Telemetry | None = None, environment: dict[str, str] | None = None, **said: Any) -> Any:
    return telemetry_plan(Settings(**said), section, environment or {})


def test_it_is_off_unless_somebody_asks() -> None:
    assert planned() is None
    assert planned(environment={"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None
    assert planned(environment={"OTEL_SDK_DISABLED": "TRUE"}, otlp=HERE) is None
    assert make_plan(Settings()).telemetry is None


def test_who_says_it_first() -> None:
    section = Telemetry(otlp="http://file:4318", sample=plans_part(0.2), metrics=False)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://env:4318", "OTEL_TRACES_SAMPLER_ARG": "0.3"}
    assert planned(section, environment, otlp=HERE, trace_sample=0.1) == TelemetryPlan(
        url=HERE, share=0.1, metrics=False
    )
    assert planned(section, environment) == TelemetryPlan(url="http://file:4318", share=0.2, metrics=False)
    assert planned(Telemetry(), environment) == TelemetryPlan(share=0.3)
    assert planned(None, environment) == TelemetryPlan(share=0.3)
    assert planned(Telemetry()) == TelemetryPlan(share=0.01)
    assert TelemetryPlan(url="http://file:4318/").endpoint("traces") == "http://file:4318/v1/traces"
    assert TelemetryPlan().endpoint("traces") is None


def plans_part(value: float) -> Any:
    from gateway.config.values import Part

    return Part(value)


@pytest.mark.parametrize(
    ("sampler", "said", "share"),
    [
        ("", "", 0.01),
        ("", "0.5", 0.5),
        ("parentbased_traceidratio", "0.5", 0.5),
        ("traceidratio", "", 1.0),
        ("always_on", "0.5", 1.0),
        ("parentbased_always_off", "", 0.0),
        ("xray", "0.5", 0.01),
    ],
)
def test_what_opentelemetrys_sampler_says(sampler: str, said: str, share: float) -> None:
    environment = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": said}
    assert planned(None, environment, otlp=HERE).share == share


def test_what_cannot_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("127.0.0.1:4318", "grpc://a:4317", "http://", "http://a:x"):
        with pytest.raises(SettingsError, match="no address of an OTLP collector"):
            planned(otlp=url)
    with pytest.raises(SettingsError, match="OTEL_TRACES_SAMPLER_ARG: '2' is no part of a whole"):
        planned(None, {"OTEL_TRACES_SAMPLER_ARG": "2"}, otlp=HERE)
    with pytest.raises(SettingsError, match="what is in KEY can't be used: it has to be NAME=VALUE"):
        planned(Telemetry(headers_env="KEY"), {"KEY": "secret"})
    with pytest.raises(SettingsError, match="--trace-sample must be from 0 to 1"):
        Settings(trace_sample=2.0)
    monkeypatch.setattr(plans, "_installed", lambda: False)
    with pytest.raises(SettingsError, match=r"pip install 'penstock\[otel\]'"):
        planned(otlp=HERE)
    assert planned(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": HERE}) is None  # somebody else may have meant it


def test_headers() -> None:
    assert parse_headers("Authorization=Basic%20abc==, x-a=1") == {"authorization": "Basic abc==", "x-a": "1"}


FILE = "models: {m: {target: a}}\ntargets: {a: {engine: openai, urls: [http://a]}}\ntelemetry: %s\n"


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTLP_KEY", "x-key=s")
    file = tmp_path / "penstock.yaml"
    file.write_text(FILE % f"{{otlp: '{HERE}', sample: 5%, metrics: false, headers_env: OTLP_KEY}}")
    found = make_plan(Settings(config=str(file))).telemetry
    assert found == TelemetryPlan(url=HERE, share=0.05, metrics=False, headers={"x-key": "s"})
    file.write_text(FILE % "{sample: 0}")
    assert read_config(str(file))[0].telemetry == Telemetry(sample=plans_part(0.0))


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ("{otlp: 'x:1'}", "3: telemetry.otlp: 'x:1' is no address of an OTLP collector"),
        ("{sample: 200%}", "3: telemetry.sample: '200%' is no part of a whole"),
        ("{oltp: x}", "3: telemetry.oltp: there is no such field; did you mean otlp?"),
        ("{headers_env: OTLP_NO}", "3: telemetry.headers_env: "),
    ],
)
def test_faults_of_a_file(section: str, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(FILE % section)
    with pytest.raises(ConfigError) as found:
        make_plan(Settings(config=str(file)))
    assert fault in str(found.value)
