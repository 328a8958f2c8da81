"""Which handler answers which path, and what happens when it can't? The ASGI application."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from gateway.api import (
    admin,
    batches,
    chat,
    completions,
    embeddings,
    feedback,
    files,
    health,
    messages,
    models,
    responses,
    rollouts,
    routed,
    shadows,
    tokenize,
)
from gateway.api.context import Context
from gateway.api.exchange import ClientGone, Exchange, Receive, Scope, Send
from gateway.openapi import document, summary
from gateway.record.recording import RECORDED, Recording
from gateway.routing import Routes
from gateway.telemetry.metrics import Outcome, outcome_of
from gateway.telemetry.trace import carried
from gateway.wire import errors

Handler = Callable[[Context, Exchange], Awaitable[None]]


async def _openapi(context: Context, exchange: Exchange) -> None:
    """``GET /openapi.json``: this list of endpoints with the shapes of their bodies, as OpenAPI 3.1 has it."""
    summaries = {(method, path): summary(it) for path, methods in ROUTES.items() for method, it in methods.items()}
    await exchange.reply(200, document(summaries))


ROUTES: Final[Mapping[str, Mapping[str, Handler]]] = {
    "/v1/chat/completions": {"POST": chat.chat_completions},
    "/v1/completions": {"POST": completions.text_completions},
    "/v1/embeddings": {"POST": embeddings.embed},
    "/v1/responses": {"POST": responses.create_response},
    "/v1/responses/{response_id}": {"GET": responses.show_response, "DELETE": responses.delete_response},
    "/v1/responses/{response_id}/cancel": {"POST": responses.cancel_response},
    "/v1/responses/{response_id}/input_items": {"GET": responses.list_input},
    "/v1/messages": {"POST": messages.create_message},
    "/v1/messages/count_tokens": {"POST": messages.count_tokens},
    "/v1/models": {"GET": models.list_models},
    "/v1/models/{model}": {"GET": models.show_model},
    "/v1/files": {"GET": files.list_files, "POST": files.upload_file},
    "/v1/files/{file_id}": {"GET": files.show_file, "DELETE": files.delete_file},
    "/v1/files/{file_id}/content": {"GET": files.download_file},
    "/v1/batches": {"GET": batches.list_batches, "POST": batches.create_batch},
    "/v1/batches/{batch_id}": {"GET": batches.show_batch},
    "/v1/batches/{batch_id}/cancel": {"POST": batches.cancel_batch},
    "/tokenize": {"POST": tokenize.tokenize_text},
    "/detokenize": {"POST": tokenize.detokenize_ids},
    "/v1/feedback": {"POST": feedback.give_feedback},
    "/admin/reload": {"POST": admin.reload},
    "/admin/rollouts": {"GET": rollouts.list_rollouts},
    "/admin/rollouts/{model}": {"GET": rollouts.show_rollout, "POST": rollouts.change_rollout},
    "/admin/shadows": {"GET": shadows.list_shadows},
    "/admin/shadows/pairs": {"GET": shadows.list_pairs},
    "/health": {"GET": health.well},
    "/health/live": {"GET": health.live},
    "/health/ready": {"GET": health.ready},
    "/metrics": {"GET": health.metrics},
    "/openapi.json": {"GET": _openapi},
}
_ANTHROPIC: Final = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_find: Final = Routes(ROUTES).find
_WHILE_DRAINING: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
_OPEN: Final = _WHILE_DRAINING | {"/openapi.json"}  # to everybody, key or not
_CLIENT_GONE: Final = 499  # nginx's status for it, in metrics only

log = logging.getLogger(__name__)


class App:
    """The ASGI application of one gateway process."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"this application speaks HTTP, not {scope['type']}")
        context = self._context
        exchange = Exchange(scope, receive, send)
        endpoint, exchange.params = _find(exchange.path) or ("other", {})
        if endpoint in _ANTHROPIC:
            messages.speak_anthropic(exchange)
        outcome: Outcome = "failed"
        context.in_flight += not exchange.only
        context.exchanges.add(exchange)
        if context.recorder is not None and endpoint in RECORDED and not exchange.only:
            recorder = context.recorder
            exchange.recording = Recording(
                recorder, exchange.request_id, endpoint, carried(exchange.sent), exchange.session
            )
        try:
            if context.draining and endpoint not in _WHILE_DRAINING:
                raise errors.shutting_down()
            if exchange.behalf:
                exchange.key = context.keys.called(exchange.behalf)
            elif endpoint not in _OPEN and not exchange.background:
                exchange.key = key = context.keys.check(exchange.authorization)
                if endpoint.startswith("/admin/") and not key.admin:
                    raise errors.not_allowed("administer this server")
            await routed.handle(context, exchange, endpoint, _handler(endpoint, exchange))
            outcome = exchange.outcome or "ok"
        except ClientGone:
            outcome = "disconnected"
            if not exchange.only:
                context.metrics.disconnects.inc()
        except errors.ApiError as error:
            outcome = outcome_of(error.status)
            if error.status >= 500 and endpoint not in _WHILE_DRAINING:
                level = logging.WARNING if error.status == 503 else logging.ERROR
                said = (exchange.request_id, endpoint, error.status, error.message)
                log.log(level, "request=%s path=%s status=%d %s", *said, extra=exchange.about)
            await exchange.fail(error)
        except Exception:
            log.exception("request=%s path=%s status=500", exchange.request_id, endpoint, extra=exchange.about)
            await exchange.fail(errors.internal_error())
        finally:
            context.in_flight -= not exchange.only
            exchange.tab.close()
            context.exchanges.discard(exchange)
            if exchange.recording is not None:
                exchange.recording.end(exchange.status or _CLIENT_GONE, outcome, exchange.variant)
            if not exchange.only:
                context.metrics.ended(endpoint, exchange.model, exchange.status or _CLIENT_GONE, outcome)


def _handler(endpoint: str, exchange: Exchange) -> Handler:
    methods = ROUTES.get(endpoint)
    if methods is None:
        raise errors.not_found(exchange.method, exchange.path)
    handler = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
    if handler is None:
        raise errors.method_not_allowed(exchange.method, exchange.path, methods)
    return handler
