"""Is the table of fields true? It is made from the structs; here the structs are held against clients and code."""

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import anthropic.types.message_count_tokens_params as anthropic_count
import anthropic.types.message_create_params as anthropic_create
import msgspec
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from gateway.app import ROUTES
from gateway.openapi import OPERATIONS
from gateway.wire.chat import ChatCompletionRequest
from gateway.wire.completions import CompletionRequest
from gateway.wire.embeddings import EmbeddingRequest
from gateway.wire.messages import CountTokensRequest, MessagesRequest
from gateway.wire.responses import ResponsesRequest
from tests.gateway.harness import run, serving

ROOT = Path(__file__).parent.parent.parent
BODIES: list[type[msgspec.Struct]] = [operation.body for operation in OPERATIONS.values() if operation.body]
CLIENTS: list[tuple[type[msgspec.Struct], type]] = [
    (ChatCompletionRequest, chat_create_params.CompletionCreateParamsBase),
    (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
    (EmbeddingRequest, embedding_create_params.EmbeddingCreateParams),
    (ResponsesRequest, response_create_params.ResponseCreateParamsBase),
    (MessagesRequest, anthropic_create.MessageCreateParamsBase),
    (CountTokensRequest, anthropic_count.MessageCountTokensParams),
]
# What the clients send in a header, or as `stream: true` alone.
_ELSEWHERE = {"stream", "anthropic_version", "anthropic_beta", "betas", "user_profile_id", "workspace_id"}


@pytest.mark.parametrize(("ours", "theirs"), CLIENTS, ids=lambda kind: kind.__name__)
def test_every_field_that_an_official_client_can_send_is_known(ours: type[msgspec.Struct], theirs: type) -> None:
    fields = set(inspect.get_annotations(theirs)) or set(get_type_hints(theirs))
    assert fields - _ELSEWHERE - set(ours.__struct_encode_fields__) == set()


def reads() -> Iterator[str]:
    """The names of all attributes that the gateway reads, and of what it gets by `getattr`."""
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                yield node.attr
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("body", BODIES, ids=lambda kind: kind.__name__)
def test_every_field_that_works_is_read(body: type[msgspec.Struct]) -> None:
    said = {*getattr(body, "refused", {}), *getattr(body, "ignored", {})}
    guided = {f"guided_{kind}" for kind in ("json", "regex", "choice", "grammar")}  # read by a name put together
    unread = set(body.__struct_fields__) - said - set(reads()) - guided
    assert unread == set()


SAMPLES: dict[str, Any] = {
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
}


@pytest.mark.parametrize("field", ChatCompletionRequest.ignored)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_has_no_effect_has_none(model_folder: Path, path: str, field: str) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            prompt = (
                {"prompt": "hi"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hi"}]}
            )
            for fields in ({}, {field: SAMPLES[field]}):
                found = await gateway.post(path, {"model": "fake", **prompt, **fields})
                assert found.status == 200
            plain, other = gateway.worker.submitted
            assert msgspec.structs.replace(other, id=plain.id, age=plain.age) == plain

    run(scenario())


def test_the_page_lists_every_route() -> None:
    assert set(OPERATIONS) == {(method, path) for path, methods in ROUTES.items() for method in methods}


def test_the_page_is_openapi(model_folder: Path) -> None:
    async def scenario() -> Any:
        async with serving(model_folder) as gateway:
            return (await gateway.get("/openapi.json")).json

    page = run(scenario())
    assert page["openapi"] == "3.1.0"
    schemas = page["components"]["schemas"]
    assert {"temperature", "tools", "response_format"} <= schemas["ChatCompletionRequest"]["properties"].keys()
    references = {node for node in _strings(page) if node.startswith("#/")}
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= schemas.keys()
    for operation in (operation for methods in page["paths"].values() for operation in methods.values()):
        assert operation["summary"] and "default" in operation["responses"]


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from _strings(value) if not isinstance(value, str) else ()
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)


def test_refusals_name_what_they_refuse() -> None:
    for body in BODIES:
        for path, refusal in getattr(body, "refused", {}).items():
            assert refusal.reason and json.dumps(refusal.neutral), path
