"""What is noted of one request, from its last byte to its answer's? Both ways that a request can take fill one in.

A `Recording` is a `flywheel.record.Record` in the making. What is known when the request is let in goes into the log at
once, as its beginning; the whole goes there when it is over, and only then does the last of the answer go out.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from time import perf_counter
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from flywheel.record import VERSION, Content, Record, Sampling, Timing, count_gap
from gateway.careful import careful
from gateway.lane.scan import TAIL, Tally, skim, stream_reasons, tally
from gateway.record.recorder import Done, Recorder
from gateway.telemetry.measures import PROVIDER
from gateway.telemetry.metrics import Outcome
from gateway.telemetry.trace import NOTHING, Carried
from gateway.wire.errors import ApiError

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
}
RECORDED: Final = frozenset(_OPERATIONS)
"""The endpoints whose requests are recorded."""
_MOST: Final = 1 << 20  # bytes of an answer that are kept
_MESSAGE: Final = 500  # characters of an error's message
_NAME: Final = 256  # characters of what clients call themselves
_HEAD: Final = 1 << 10  # bytes of an answer's beginning are looked at
_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"\\]{1,256})"').search
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,128})"').search


_Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None


class _Asked(msgspec.Struct):
    """What of a request's body is in a record's own fields, where it is of the types that it should be."""

    model: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Any = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: _Whole = None
    max_tokens: _Whole = None
    max_completion_tokens: _Whole = None
    max_output_tokens: _Whole = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: _Whole = None
    n: _Whole = None
    stop: Any = None
    stop_sequences: Any = None
    stream: bool | None = None


class _Error(msgspec.Struct):
    """An error, as an upstream writes it; a code may be a number, the status again."""

    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Fault(msgspec.Struct):
    error: _Error


_asked: Final = msgspec.json.Decoder(_Asked).decode
_fault: Final = msgspec.json.Decoder(_Fault).decode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NAMES: Final = frozenset(_Asked.__struct_fields__)


class Recording:
    """The record of one request.

    Args:
        recorder: where it goes.
        request_id: what it is called.
        endpoint: the path.
        carried: what came with it of a trace.
        session: what its headers say of that.

    Without a log nobody will read what was said, or how long each token took.
    """

    __slots__ = (
        "_begun", "_keeps", "_last", "_output", "_recorder", "_said", "_size", "_started", "_tail", "over",
        "record", "timing", "trace",
    )  # fmt: skip

    def __init__(
        self, recorder: Recorder, request_id: str, endpoint: str, carried: Carried = NOTHING, session: str = ""
    ) -> None:
        self._recorder = recorder
        self._keeps = recorder.log is not None
        self._said = False
        self.trace = recorder.join(carried)
        self._started = perf_counter()
        self._last = 0.0
        self._output: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._begun = False
        self.over = False
        self.timing = Timing()
        self.record = Record(
            VERSION,
            recorder.unique(request_id) if self._keeps else request_id,
            time.time_ns() // 1000,
            operation_name=_OPERATIONS.get(endpoint) or endpoint.rpartition("/")[2],
            endpoint=endpoint,
            trace_id=self.trace.trace_id,
            span_id=self.trace.span_id,
            session=_short(session),
            timing=self.timing,
        )

    def asked(self, body: bytes, key: str) -> None:
        """Who asks for what, whether that is there or not. What comes after the first time is somebody else's."""
        record = self.record
        if self._said:
            return
        self._said = True
        record.key = key
        if not self._keeps and not self.trace.sampled:
            return
        said = _read(body)
        record.request_model = _short(said.model) or _model(body)
        record.content = Content(input=body)
        metadata = said.metadata if isinstance(said.metadata, dict) else None
        user = said.user or said.safety_identifier
        if metadata:
            record.tags = {name: value for name, value in metadata.items() if isinstance(value, str)} or None
            user = user or (record.tags or {}).get("user_id")
        record.user, record.session = _short(user), record.session or _short(said.prompt_cache_key)
        record.stream = said.stream is True
        record.sampling = _sampling(said)

    def begin(self, model: str, here: str | None = None) -> None:
        """It is let in: whatever happens from here on, there will be a record of it.

        ``model`` is a served name, ``here`` the target of ours that answers, if one does.
        """
        if here is not None:
            self.record.target, self.record.provider_name = here, PROVIDER
        if self._begun:
            return
        self.record.model = model
        self.timing.queued = self._now()
        self._begun = True
        if self._keeps:
            with careful:
                self._recorder.begin(self.record)

    def placed(self, target: str, worker: str) -> None:
        """It is sent to somebody who may answer; what has come from others is thrown away."""
        if self._last or self._tail:
            self._again()
        record = self.record
        record.target, record.worker, record.provider_name = target, worker, ""
        record.attempts += 1
        if self.timing.placed is None:
            self.timing.placed = self._now()

    def answers(self, worker: str, provider: str, *, stream: bool) -> None:
        """Of those it was sent to, this one answers."""
        self.record.worker, self.record.provider_name, self.record.stream = worker, provider, stream

    def sent_on(self, worker: str, provider: str, attempts: int) -> None:
        """Where it was placed, so many were asked, this one last."""
        record = self.record
        record.worker, record.provider_name = worker, provider
        record.attempts += max(0, attempts - 1)

    def goes_on(self, worker: str) -> None:
        """Another one goes on with the answer."""
        self.record.worker = worker
        self.record.attempts += 1

    def reached(self, moment: float) -> None:
        """A worker of ours has got it, at ``moment`` by ``perf_counter``."""
        self.record.attempts = max(self.record.attempts, 1)
        self.timing.placed = max(0.0, moment - self._started)

    def tokens(self) -> None:
        """Tokens of the answer are there."""
        now = self._now()
        if self._last:
            if self._keeps:
                count_gap(self.timing.gaps, now - self._last)
        else:
            self.timing.first_token = now
        self._last = now

    def add(self, data: bytes) -> None:
        """More of what the client gets to read."""
        self._tail = data if len(data) >= TAIL else (self._tail + data)[-TAIL:]
        if self._keeps and self._size < _MOST:
            self._output.append(data)
            self._size += len(data)

    def arrived(self, data: bytes) -> None:
        """Both: more of the answer, tokens and all."""
        self.tokens()
        self.add(data)

    def counted(
        self, *, prompt: int, cached: int, output: int, reasoning: int | None, finish_reasons: tuple[str, ...]
    ) -> None:
        """What the answer has cost, where that is known better than the answer says."""
        record = self.record
        record.input_tokens, record.cached_tokens, record.output_tokens = prompt, cached, output
        record.reasoning_tokens, record.finish_reasons = reasoning, finish_reasons

    def told(self, said: Tally) -> None:
        """What a whole answer says of itself."""
        self._tail = b""
        record = self.record
        if said.prompt_tokens > 0:
            record.input_tokens, record.cached_tokens = said.prompt_tokens, said.cached_tokens
        if said.prompt_tokens > 0 or said.output_tokens > 0:
            record.output_tokens = said.output_tokens
        record.finish_reasons = said.finish_reasons
        record.response_id, record.response_model = said.id, _short(said.model)

    def failed(self, error: ApiError) -> None:
        """The client is told of an error."""
        self.record.error_type, self.record.error_message = error.code or "", error.message[:_MESSAGE]

    def refused(self, body: bytes) -> None:
        """The client is told of an error in an upstream's own words."""
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            said = _fault(body).error
            kind = said.code if isinstance(said.code, str) else said.type or ""
            self.record.error_type, self.record.error_message = _short(kind), (said.message or "")[:_MESSAGE]

    def _again(self) -> None:
        self._output.clear()
        self._size = 0
        self._tail = b""
        self._last = 0.0
        self.timing.first_token = None
        self.timing.gaps = []

    def end(self, status: int, outcome: Outcome, variant: bytes, done: Done | None = None) -> None:
        """It is over, and ``variant`` has answered, or was to.

        ``done`` is called once that is on the record, or can't be for now: then the rest may go out.
        """
        if self.over:
            return
        self.over = True
        with careful:
            self._complete(status, outcome, variant)
            self._recorder.end(self.record, self.trace, done)
            return
        if done is not None:
            done(False)

    def _complete(self, status: int, outcome: Outcome, variant: bytes) -> None:
        """Note how it has ended."""
        record, timing = self.record, self.timing
        record.status, record.outcome, record.variant = status, outcome, variant.decode()
        if self._last:
            timing.last_token = self._last
        timing.ended = self._now()
        if record.output_tokens is None and self._tail:
            self.told(tally(self._tail))
        if not self._begun and record.request_model in self._recorder.names():
            record.model = record.request_model
        if self._output and status < 400:
            self._read_output(b"".join(self._output))

    def _read_output(self, output: bytes) -> None:
        """Keep what was answered, and note what it says of itself."""
        record = self.record
        if record.content is not None:
            record.content.output = output
        if not record.response_id:
            if (name := _ID(output, 0, _HEAD)) is not None:
                record.response_id = name[1].decode("utf-8", "replace")
            if (model := _MODEL(output, 0, _HEAD)) is not None:
                record.response_model = model[1].decode("utf-8", "replace")
        if record.stream and record.sampling is not None and (record.sampling.choice_count or 1) > 1:
            record.finish_reasons = stream_reasons(output) or record.finish_reasons
        if record.input_tokens is None and record.output_tokens is not None:  # Anthropic's streams begin with it
            said = tally(output[:_HEAD])
            if said.prompt_tokens:
                record.input_tokens, record.cached_tokens = said.prompt_tokens, said.cached_tokens

    async def finish(self, status: int, outcome: Outcome, variant: bytes) -> None:
        """The same, for who can wait until the rest may go out."""
        if self.over or not self._keeps:
            self.end(status, outcome, variant)
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(_: bool) -> None:
            if not written.done():
                written.set_result(None)

        self.end(status, outcome, variant, done)
        await written

    def _now(self) -> float:
        return perf_counter() - self._started


def _model(body: bytes) -> str:
    """The model of a body not all of which can be read."""
    try:
        return _short(skim(body).model)
    except ApiError:
        return ""


def _read(body: bytes) -> _Asked:
    """What a body asks for; fields of other types than they should be aren't noted."""
    try:
        return _asked(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_field_by_field(body)


def _read_field_by_field(body: bytes) -> _Asked:
    made = _Asked()
    try:
        fields = _fields(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return made
    for name in _NAMES & fields.keys():
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            one = _asked(b'{"%b":%b}' % (name.encode(), bytes(fields[name])))
            setattr(made, name, getattr(one, name))
    return made


def _sampling(said: _Asked) -> Sampling:
    most = said.max_completion_tokens
    if most is None:
        most = said.max_output_tokens if said.max_tokens is None else said.max_tokens
    stops = said.stop_sequences if said.stop is None else said.stop
    return Sampling(
        said.temperature,
        said.top_p,
        said.top_k,
        most,
        said.frequency_penalty,
        said.presence_penalty,
        said.seed,
        said.n,
        () if stops is None else _texts(stops),
    )


def _short(value: str | None) -> str:
    return value[:_NAME] if value else ""


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, Sequence) else ()
