"""What is noted of one request, from its last byte to its answer's? Both ways that a request can take fill one in.

A `Recording` is a `flywheel.record.Record` in the making. What is known when the request is let in goes into the log at
once, as its beginning; the whole goes there when it is over, and only then does the last of the answer go out.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from time import perf_counter
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from flywheel.record import VERSION, Content, Record, Sampling, Timing, count_gap
from gateway.careful import careful
from gateway.lane.scan import TAIL, Tally, skim, tally
from gateway.record.recorder import Done, Recorder
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


_asked: Final = msgspec.json.Decoder(_Asked).decode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NAMES: Final = frozenset(_Asked.__struct_fields__)


class Recording:
    """The record of one request.

    Args:
        recorder: where it goes.
        request_id: what it is called.
        endpoint: the path.
        carried: what came with it of a trace.

    Without a log nobody will read what was said, or how long each token took.
    """

    __slots__ = (
        "_begun", "_keeps", "_last", "_output", "_recorder", "_said", "_size", "_started", "_tail", "over",
        "record", "timing", "trace",
    )  # fmt: skip

    def __init__(self, recorder: Recorder, request_id: str, endpoint: str, carried: Carried = NOTHING) -> None:
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
        record.user, record.session = _short(user), _short(said.prompt_cache_key)
        record.stream = said.stream is True
        record.sampling = _sampling(said)

    def begin(self, model: str) -> None:
        """It is let in: whatever happens from here on, there will be a record of it. ``model`` is a served name."""
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
        record.target, record.worker = target, worker
        record.attempts += 1
        if self.timing.placed is None:
            self.timing.placed = self._now()

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
        if said.prompt_tokens > 0:
            record = self.record
            record.input_tokens, record.cached_tokens = said.prompt_tokens, said.cached_tokens
            record.output_tokens = said.output_tokens
        if said.finish_reason:
            self.record.finish_reasons = (said.finish_reason,)

    def failed(self, error: ApiError) -> None:
        """The client is told of an error."""
        self.record.error_type, self.record.error_message = error.code or "", error.message[:_MESSAGE]

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
        if record.content is not None and self._output:
            record.content.output = b"".join(self._output)

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
