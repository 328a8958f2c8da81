"""Requests get to a real OTLP endpoint as spans and metrics, on both ways, and join their clients' traces."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.gateway.harness import run
from tests.gateway.lane.upstream import obliging
from tests.gateway.record.test_recording import records
from tests.gateway.telemetry.collector import Collector, collecting, values
from tests.gateway.traffic.harness import Gateway, chat, configured
from tests.gateway.traffic.test_routes import failing, targets

MODELS = "models: {chat: {target: a, timeout: {total: 5s}}, plain: {target: a}}\n"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def telemetry(collector: Collector, sample: str = "100%", **more: Any) -> str:
    said = "".join(f", {name}: {value}" for name, value in more.items())
    return f"telemetry: {{otlp: '{collector.url}', sample: {sample}{said}}}\n"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@contextlib.asynccontextmanager
async def watched(
    folder: Path, model_folder: Path, text: str, *scripts: Any, here: int | None = None
) -> AsyncIterator[tuple[Gateway, list[Any]]]:
    async with (
        targets(folder, model_folder, *scripts, here=here) as (section, made),
        configured(folder, MODELS + text + section) as gateway,
    ):
        yield gateway, made


async def until_there(collector: Collector, count: int = 1) -> list[Span]:
    async with asyncio.timeout(5):
        while len(found := collector.requests()) < count:
            await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize("here", [None, 0])
@pytest.mark.parametrize("model", ["chat", "plain"])
def test_a_request_is_a_span_with_a_child_for_each_phase(
    model: str, here: int | None, tmp_path: Path, model_folder: Path
) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            async with watched(tmp_path, model_folder, telemetry(collector), obliging, here=here) as (gateway, _):
                asked = chat(
                    model=model, stream=True, temperature=0.5, user="u1", stream_options={"include_usage": True}
                )
                assert (await gateway.post(asked, x_request_id="my-id")).status == 200
                (span,) = await until_there(collector)
            assert (span.name, span.kind, span.status.code) == (f"chat {model}", Span.SPAN_KIND_SERVER, 0)
            said = values(span.attributes)
            assert said["gen_ai.operation.name"] == "chat" and said["gen_ai.provider.name"] == (
                "openai" if here is None else "penstock"
            )
            assert said["gen_ai.request.model"] == model and said["gen_ai.request.temperature"] == 0.5
            assert said["gen_ai.usage.input_tokens"] > 0 and said["gen_ai.usage.output_tokens"] > 0
            assert said["http.response.status_code"] == 200 and said["http.route"] == "/v1/chat/completions"
            assert said["penstock.request_id"] == "my-id" and said["penstock.outcome"] == "ok"
            assert "error.type" not in said and "u1" not in str(span)
            assert not span.parent_span_id
            children = {child.name: child for child in collector.spans if child is not span}
            assert set(children) == {"queue", "place", "prefill", "decode"}
            for child in children.values():
                assert (child.trace_id, child.parent_span_id) == (span.trace_id, span.span_id)
                begin, end = child.start_time_unix_nano, child.end_time_unix_nano
                assert span.start_time_unix_nano <= begin <= end <= span.end_time_unix_nano
            assert children["prefill"].end_time_unix_nano == children["decode"].start_time_unix_nano
            (resource,) = collector.resources[:1]
            assert resource["service.name"] == "penstock" and resource["service.instance.id"]

    run(scenario())


@pytest.mark.parametrize("here", [None, 0])
@pytest.mark.parametrize("model", ["chat", "plain"])
def test_a_clients_trace_is_taken_over(model: str, here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            text = telemetry(collector, "0%")
            async with watched(tmp_path, model_folder, text, obliging, here=here) as (gateway, _):
                for sampled in ("00", "01"):
                    parent = f"00-{TRACE}-{PARENT}-{sampled}"
                    await gateway.post(chat(model=model), traceparent=parent, tracestate="vendor=x")
                (span,) = await until_there(collector)
            assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
            assert span.trace_state == "vendor=x" and span.span_id.hex() != PARENT
            assert len(collector.requests()) == 1

    run(scenario())


@pytest.mark.parametrize("model", ["chat", "plain"])
@pytest.mark.parametrize("both", [False, True])
def test_an_upstream_gets_our_span_as_its_parent(model: str, both: bool, tmp_path: Path, model_folder: Path) -> None:
    """``both``: a route that may lead to a worker of ours, too, goes through the application to the lane."""

    async def scenario() -> None:
        scripts = [obliging, obliging] if both else [obliging]
        models = MODELS.replace("target: a, timeout", "target: a, fallback: [b], timeout") if both else MODELS
        parent = f"00-{TRACE}-{PARENT}-01"
        with collecting() as collector:
            async with (
                targets(tmp_path, model_folder, *scripts, here=1 if both else None) as (section, (upstream, *_)),
                configured(tmp_path, models + telemetry(collector) + section) as gateway,
            ):
                await gateway.post(chat(model=model), traceparent=parent, tracestate="vendor=x")
                await gateway.post(chat(model=model))
                await gateway.post(chat(model=model), traceparent="00-nonsense", tracestate="vendor=x")
                joined, *own = await until_there(collector, 3)
                sent = [request.headers for request in upstream.requests]
            assert (joined.trace_id.hex(), joined.parent_span_id.hex()) == (TRACE, PARENT)
            assert sent[0]["traceparent"] == f"00-{TRACE}-{joined.span_id.hex()}-01"
            assert sent[0]["tracestate"] == "vendor=x"
            for span, headers in zip(own, sent[1:], strict=True):
                assert headers["traceparent"] == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"
                assert "tracestate" not in headers and not span.parent_span_id

    run(scenario())


def test_without_telemetry_a_clients_trace_passes_through_untouched(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        parent = f"00-{TRACE}-{PARENT}-01"
        async with watched(tmp_path, model_folder, "", obliging) as (gateway, (upstream,)):
            for model in ("plain", "chat"):
                await gateway.post(chat(model=model), traceparent=parent, tracestate="vendor=x")
                found = upstream.requests[-1].headers
                assert (found["traceparent"], found["tracestate"]) == (parent, "vendor=x")
            await gateway.post(chat(model="plain"))
            assert "traceparent" not in upstream.requests[-1].headers
            assert gateway.context.recorder is None

    run(scenario())


def test_embeddings(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            async with watched(tmp_path, model_folder, telemetry(collector), obliging, here=0) as (gateway, _):
                answer = await gateway.post({"model": "plain", "input": "hello"}, "/v1/embeddings")
                assert answer.status == 200
                (span,) = await until_there(collector)
            said = values(span.attributes)
            assert span.name == "embeddings plain" and said["gen_ai.usage.input_tokens"] > 0
            assert said["penstock.worker"] and "place" in {child.name for child in collector.spans}

    run(scenario())


@pytest.mark.parametrize("here", [None, 0])
def test_how_requests_fail(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            async with watched(tmp_path, model_folder, telemetry(collector), failing(500), here=here) as (
                gateway,
                made,
            ):
                if here == 0:
                    made[0].refuse = ("internal", "no")
                assert (await gateway.post(chat(model="nobody"))).status == 404
                assert (await gateway.post(chat())).status == 500
                wrong, failed = await until_there(collector, 2)
            assert wrong.status.code == Status.STATUS_CODE_UNSET and failed.status.code == Status.STATUS_CODE_ERROR
            assert values(wrong.attributes)["error.type"] == "model_not_found"
            assert values(failed.attributes)["error.type"] in ("internal_error", "500")
            assert values(failed.attributes)["penstock.outcome"] == "failed"

    run(scenario())


@pytest.mark.parametrize("here", [None, 0])
def test_metrics_have_the_conventions_names_and_bounded_attributes(
    here: int | None, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")

    async def scenario() -> None:
        with collecting() as collector:
            text = telemetry(collector, "0%")
            async with watched(tmp_path, model_folder, text, obliging, here=here) as (gateway, _):
                usage = {"include_usage": True}
                for _ in range(3):
                    await gateway.post(chat(model="plain", stream=True, stream_options=usage))
                for name in ("no-1", "no-2"):
                    await gateway.post(chat(model=name))
            # The last are sent when it ends.
            found = {
                name: [(values(point.attributes), point) for point in metric.histogram.data_points]
                for name, metric in collector.metrics.items()
            }
            assert set(found) == {
                "gen_ai.server.request.duration",
                "gen_ai.server.time_to_first_token",
                "gen_ai.server.time_per_output_token",
                "gen_ai.client.token.usage",
            }
            common = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai" if here is None else "penstock"}
            plain = {**common, "gen_ai.request.model": "plain"}
            durations = {tuple(sorted(said.items())): point for said, point in found["gen_ai.server.request.duration"]}
            assert durations[tuple(sorted(plain.items()))].count == 3
            # Two names that are none: one series, without them.
            missing = {**common, "gen_ai.provider.name": "penstock", "error.type": "model_not_found"}
            assert durations[tuple(sorted(missing.items()))].count == 2
            ((said, first),) = found["gen_ai.server.time_to_first_token"]
            assert said == plain and first.count == 3 and first.sum > 0 and sum(first.bucket_counts) == 3
            ((said, each),) = found["gen_ai.server.time_per_output_token"]
            assert said == plain and each.count == 3 and len(each.bucket_counts) == len(each.explicit_bounds) + 1
            tokens = {said.pop("gen_ai.token.type"): point for said, point in found["gen_ai.client.token.usage"]}
            assert tokens["input"].count == tokens["output"].count == 3
            if here is None:
                assert tokens["input"].sum == 21
            assert collector.metrics["gen_ai.client.token.usage"].unit == "{token}"
            assert not collector.spans

    run(scenario())


def test_headers_and_the_resource_are_what_the_environment_says(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "inference")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.instance.id=i-1")
    monkeypatch.setenv("COLLECTOR", "Authorization=Basic%20abc,X-Scope=team")

    async def scenario() -> None:
        with collecting() as collector:
            text = telemetry(collector, headers_env="COLLECTOR")
            async with watched(tmp_path, model_folder, text, obliging) as (gateway, _):
                await gateway.post(chat(model="plain"))
                await until_there(collector)
            resource = collector.resources[0]
            assert (resource["service.name"], resource["service.instance.id"]) == ("inference", "i-1")
            assert resource["deployment.environment.name"] == "test"
            assert (collector.headers["authorization"], collector.headers["x-scope"]) == ("Basic abc", "team")

    run(scenario())


def test_an_address_from_the_environment_is_enough(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1")
            async with watched(tmp_path, model_folder, "", obliging) as (gateway, _):
                await gateway.post(chat(model="plain"))
                assert len(await until_there(collector)) == 1

    run(scenario())


def test_a_collector_that_takes_nothing_costs_traces_and_nothing_else(
    tmp_path: Path, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            collector.status = 400
            async with watched(tmp_path, model_folder, telemetry(collector), obliging) as (gateway, _):
                assert (await gateway.post(chat(model="plain"))).status == 200
                async with asyncio.timeout(5):
                    while not gateway.metric("penstock_traces_lost_total"):
                        await asyncio.sleep(0.01)
                assert gateway.metric("penstock_traces_lost_total") == 1

    run(scenario())


def test_with_a_log_beside_it_both_have_the_same_ids(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            text = telemetry(collector) + f"log: {{path: {tmp_path / 'log'}}}\n"
            async with watched(tmp_path, model_folder, text, obliging) as (gateway, _):
                await gateway.post(chat(model="plain"))
                (span,) = await until_there(collector)
                (record,) = records(tmp_path)
                assert (record.trace_id, record.span_id) == (span.trace_id.hex(), span.span_id.hex())
                assert record.content is not None and record.content.output
                assert gateway.metric("penstock_log_records_total") == 1
                assert gateway.metric("penstock_log_lost_total") == 0
                assert gateway.metric("penstock_log_backlog_bytes") == 0

    run(scenario())


def test_a_log_alone_has_the_clients_trace(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        text = f"log: {{path: {tmp_path / 'log'}}}\n"
        async with watched(tmp_path, model_folder, text, obliging) as (gateway, _):
            await gateway.post(chat(model="plain"), traceparent=f"00-{TRACE}-{PARENT}-01")
            await gateway.post(chat(model="plain"))
            first, second = records(tmp_path)
            assert first.trace_id == TRACE and len(first.span_id) == 16
            assert second.trace_id == second.span_id == ""  # nobody has been told of one

    run(scenario())


@pytest.mark.parametrize("here", [None, 0])
def test_who_scrapes_open_metrics_finds_the_trace(here: int | None, tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            async with watched(tmp_path, model_folder, telemetry(collector), obliging, here=here) as (gateway, _):
                parent = f"00-{TRACE}-{PARENT}-01"
                await gateway.post(chat(model="plain", stream=True), traceparent=parent)
                accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
                page = await gateway.get("/metrics", accept=accept)
                assert page.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
                lines = [line for line in page.body.decode().splitlines() if TRACE in line]
                for name in ("time_to_first_token", "request_duration"):
                    assert any(line.startswith(f"penstock_{name}_seconds_bucket") for line in lines)
                page = await gateway.get("/metrics")
                assert page.headers["content-type"].startswith("text/plain") and TRACE not in page.body.decode()

    run(scenario())


def test_a_reload_changes_the_share_and_nothing_else(tmp_path: Path, model_folder: Path) -> None:
    async def scenario() -> None:
        with collecting() as collector:
            async with (
                targets(tmp_path, model_folder, obliging) as (section, _),
                configured(tmp_path, MODELS + telemetry(collector, "0%") + section) as gateway,
            ):
                await gateway.post(chat(model="plain"))
                assert await gateway.reload(MODELS + telemetry(collector, "1") + section) == ["telemetry changed"]
                await gateway.post(chat(model="plain"), x_request_id="second")
                (span,) = await until_there(collector)
                assert values(span.attributes)["penstock.request_id"] == "second"
                with pytest.raises(Exception, match="only its sample"):
                    await gateway.reload(MODELS + section)

    run(scenario())
