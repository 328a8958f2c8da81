"""What does ``/openapi.json`` say? Every route with the shapes of its bodies, made from the structs that decode it."""

import importlib.metadata
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from gateway.wire import (
    admin,
    batches,
    chat,
    completions,
    embeddings,
    errors,
    feedback,
    files,
    messages,
    messages_answer,
    models,
    responses,
    responses_answer,
    rollouts,
    shadows,
    tokenize,
)

_SCHEMAS: Final = "#/components/schemas/{name}"
_UPLOAD: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(files.PURPOSES)},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": files.MIN_EXPIRY, "maximum": files.MAX_EXPIRY},
    },
}
_PAGE: Final[dict[str, dict[str, Any]]] = {
    "limit": {"type": "integer", "minimum": 1},
    "after": {"type": "string"},
    "order": {"enum": ["asc", "desc"]},
}


class Operation(NamedTuple):
    """What goes in and out of one route. ``answer`` None: no JSON; ``events``: it can be streamed as well."""

    answer: Any
    body: Any = None
    query: Mapping[str, dict[str, Any]] = {}
    events: bool = False
    upload: bool = False
    error: Any = errors.ErrorBody


OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("POST", "/v1/chat/completions"): Operation(chat.ChatCompletion, chat.ChatCompletionRequest, events=True),
    ("POST", "/v1/completions"): Operation(completions.Completion, completions.CompletionRequest, events=True),
    ("POST", "/v1/embeddings"): Operation(embeddings.EmbeddingList, embeddings.EmbeddingRequest),
    ("POST", "/v1/responses"): Operation(responses_answer.Response, responses.ResponsesRequest, events=True),
    ("GET", "/v1/responses/{response_id}"): Operation(responses_answer.Response),
    ("DELETE", "/v1/responses/{response_id}"): Operation(responses_answer.DeletedResponse),
    ("POST", "/v1/responses/{response_id}/cancel"): Operation(responses_answer.Response),
    ("GET", "/v1/responses/{response_id}/input_items"): Operation(responses_answer.ItemList, query=_PAGE),
    ("POST", "/v1/messages"): Operation(
        messages_answer.Message, messages.MessagesRequest, events=True, error=messages_answer.ErrorBody
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        messages_answer.TokenCount, messages.CountTokensRequest, error=messages_answer.ErrorBody
    ),
    ("GET", "/v1/models"): Operation(models.ModelList),
    ("GET", "/v1/models/{model}"): Operation(models.Model),
    ("GET", "/v1/files"): Operation(
        files.Page[files.FileObject], query={**_PAGE, "purpose": {"enum": [*files.PURPOSES, "batch_output"]}}
    ),
    ("POST", "/v1/files"): Operation(files.FileObject, upload=True),
    ("GET", "/v1/files/{file_id}"): Operation(files.FileObject),
    ("DELETE", "/v1/files/{file_id}"): Operation(files.FileDeleted),
    ("GET", "/v1/files/{file_id}/content"): Operation(None),
    ("GET", "/v1/batches"): Operation(files.Page[batches.Batch], query=_PAGE),
    ("POST", "/v1/batches"): Operation(batches.Batch, batches.CreateBatch),
    ("GET", "/v1/batches/{batch_id}"): Operation(batches.Batch),
    ("POST", "/v1/batches/{batch_id}/cancel"): Operation(batches.Batch),
    ("POST", "/tokenize"): Operation(tokenize.TokenizeResponse, tokenize.TokenizeRequest),
    ("POST", "/detokenize"): Operation(tokenize.DetokenizeResponse, tokenize.DetokenizeRequest),
    ("POST", "/v1/feedback"): Operation(feedback.FeedbackTaken, feedback.FeedbackRequest),
    ("POST", "/admin/reload"): Operation(admin.Reloaded),
    ("GET", "/admin/rollouts"): Operation(rollouts.RolloutList),
    ("GET", "/admin/rollouts/{model}"): Operation(rollouts.RolloutShown),
    ("POST", "/admin/rollouts/{model}"): Operation(rollouts.RolloutShown, rollouts.RolloutAction),
    ("GET", "/admin/shadows"): Operation(shadows.ShadowList),
    ("GET", "/admin/shadows/pairs"): Operation(
        shadows.ShadowPairList,
        query={
            "model": {"type": "string"},
            "target": {"type": "string"},
            "limit": {"type": "integer", "minimum": 1, "maximum": shadows.MAX_PAIRS},
            "differing": {"type": "boolean"},
        },
    ),
    ("GET", "/health"): Operation(None),
    ("GET", "/health/live"): Operation(None),
    ("GET", "/health/ready"): Operation(None),
    ("GET", "/metrics"): Operation(None),
    ("GET", "/openapi.json"): Operation(None),
}


def document(summaries: Mapping[tuple[str, str], str]) -> bytes:
    """The page, as JSON. ``summaries`` say what each method of each route does."""
    types = [kind for operation in OPERATIONS.values() for kind in operation[:2] if kind is not None]
    types += [errors.ErrorBody, messages_answer.ErrorBody]
    unique = list(dict.fromkeys(types))
    found, components = msgspec.json.schema_components(unique, ref_template=_SCHEMAS)
    schemas = dict(zip(unique, found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        summary = summaries.get((method, path), "")
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, summary, schemas)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Penstock", "version": importlib.metadata.version("penstock")},
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def summary(handler: object) -> str:
    """What a handler's docstring says behind the method and path that it begins with."""
    first = " ".join((inspect.getdoc(handler) or "").partition("\n\n")[0].split()).replace("``", "`")
    said = re.sub(r"^`[A-Z]+ [^`]*`[:.]? *", "", first)
    return said[:1].upper() + said[1:]


def _operation(path: str, operation: Operation, summary: str, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content["application/json"] = {"schema": schemas[operation.answer]}
    if operation.events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    said: dict[str, Any] = {
        "summary": summary,
        "parameters": list(_parameters(path, operation)),
        "responses": {
            "200": {"description": "The answer", **({"content": content} if content else {})},
            "default": {
                "description": "An error",
                "content": {"application/json": {"schema": schemas[operation.error]}},
            },
        },
    }
    if operation.upload:
        said["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}
    elif operation.body is not None:
        schema = schemas[operation.body]
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return said


def _parameters(path: str, operation: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name, schema in operation.query.items():
        yield {"name": name, "in": "query", "schema": schema}
