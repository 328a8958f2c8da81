"""What is noted of one request, from its last byte to its answer's? Both ways that a request can take fill one in.

A `Recording` is a `flywheel.record.Record` in the making. What is known when the request is let in goes into the log at
once, as its beginning; the whole goes there when it is over, and only then does the last of the answer go out.
"""

import asyncio
import contextlib
import re
from collections.abc import Sequence
from time import perf_counter, time_ns
from typing import Any, Final

import msgspec

from flywheel.record import VERSION, Record, Sampling, Timing, count_gap
from gateway.careful import log_fault
from gateway.lane.scan import TAIL, UNREADABLE, Asked, Skimmed, Tally, read_asked, skim, stream_reasons, tally
from gateway.record.recorder import Done, Recorder
from gateway.telemetry.measures import PROVIDER
from gateway.telemetry.metrics import Outcome
from gateway.telemetry.trace import NO_TRACE, NOTHING, Carried
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


class _Error(msgspec.Struct):
    """An error, as an upstream writes it; a code may be a number, the status again."""

    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Fault(msgspec.Struct):
    error: _Error


_fault: Final = msgspec.json.Decoder(_Fault).decode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NAMES: Final = frozenset(Asked.__annotations__) | {"model"}


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
        "_begun", "_body", "_counted", "_keeps", "_last", "_output", "_recorder", "_room", "_said", "_started", "_tail",
        "_told", "over", "record", "timing", "trace",
    )  # fmt: skip

    def __init__(
        self, recorder: Recorder, request_id: str, endpoint: str, carried: Carried = NOTHING, session: str = ""
    ) -> None:
        self._started = perf_counter()
        self._recorder = recorder
        self._keeps = keeps = recorder.log is not None
        self.trace = trace = recorder.join(carried)
        self._body: bytes | None = None
        self._output: list[bytes] = []
        self._room = _MOST if keeps else 0
        self._tail = b""
        self._last = 0.0
        self._counted = 0  # of the attempts, those by the target that has it
        self._said = self._begun = self._told = self.over = False
        self.timing = timing = Timing()
        self.record = record = Record(
            VERSION,
            recorder.unique(request_id) if keeps else request_id,
            time_ns() // 1000,
            operation_name=_OPERATIONS[endpoint],
            endpoint=endpoint,
            timing=timing,
        )
        if trace is not NO_TRACE:
            record.trace_id, record.span_id = trace.trace_id, trace.span_id
        if session:
            record.session = session[:_NAME]

    def asked(self, body: bytes, key: str, read: Skimmed | None = None) -> None:
        """Who asks for what, whether that is there or not; ``read`` is what was read of the ``body`` already.

        What comes after the first time is somebody else's.
        """
        if self._said:
            return
        self._said = True
        record = self.record
        record.key = key
        if not self._keeps and not self.trace.sampled:
            return
        self._body = body
        said = read if isinstance(read, Asked) else _read(body)
        record.request_model = said.model[:_NAME] or _model(body)
        user = said.user or said.safety_identifier
        if isinstance(said.metadata, dict):
            record.tags = {name: value for name, value in said.metadata.items() if isinstance(value, str)} or None
            user = user or (record.tags or {}).get("user_id")
        if user:
            record.user = user[:_NAME]
        if said.prompt_cache_key and not record.session:
            record.session = said.prompt_cache_key[:_NAME]
        if said.stream:
            record.stream = True
        record.sampling = _sampling(said)

    def begin(self, model: str, here: str | None = None) -> None:
        """It is let in: whatever happens from here on, there will be a record of it.

        ``model`` is a served name, ``here`` the target of ours that answers, if one does.
        """
        record = self.record
        if here is not None:
            record.target, record.provider_name = here, PROVIDER
        if self._begun:
            return
        self._begun = True
        record.model = model
        self.timing.queued = perf_counter() - self._started
        if self._keeps:
            try:
                self._recorder.begin(record)
            except Exception:
                log_fault()

    def placed(self, target: str, worker: str) -> None:
        """It is sent to somebody who may answer; what has come from others is thrown away."""
        record = self.record
        if record.attempts:
            self._again()
        else:
            self.timing.placed = perf_counter() - self._started
        record.target, record.worker = target, worker
        record.attempts += 1
        self._counted = 1

    def answers(self, worker: str, provider: str, *, stream: bool) -> None:
        """Of those it was sent to, this one answers."""
        record = self.record
        record.provider_name = provider
        if record.worker is not worker:
            record.worker = worker
        if record.stream is not stream:
            record.stream = stream

    def sent_on(self, worker: str, provider: str, attempts: int) -> None:
        """Where it was placed, so many were asked, this one last."""
        record = self.record
        record.worker, record.provider_name = worker, provider
        record.attempts += max(0, attempts - 1)

    def goes_on(self, worker: str) -> None:
        """Another one goes on with the answer."""
        self.record.worker = worker
        self.record.attempts += 1

    def reached(self, moment: float, workers: int) -> None:
        """So many workers of ours have got it, the first at ``moment`` by ``perf_counter``."""
        self.record.attempts += workers - self._counted
        self._counted = workers
        self.timing.placed = max(0.0, moment - self._started)

    def tokens(self) -> None:
        """Tokens of the answer are there."""
        now = perf_counter() - self._started
        if self._last:
            if self._keeps:
                count_gap(self.timing.gaps, now - self._last)
        else:
            self.timing.first_token = now
        self._last = now

    def add(self, data: bytes) -> None:
        """More of what the client gets to read."""
        if self._room > 0:
            self._output.append(data)
            self._room -= len(data)
        else:
            self._tail = data if len(data) >= TAIL else (self._tail + data)[-TAIL:]

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
        self._told = True
        record = self.record
        if prompt := said.prompt_tokens:
            record.input_tokens, record.cached_tokens = prompt, said.cached_tokens
        if (output := said.output_tokens) or prompt:
            record.output_tokens = output
        record.finish_reasons = said.finish_reasons
        if model := said.model:
            record.response_model = model[:_NAME]
        if id := said.id:
            record.response_id = id

    def failed(self, error: ApiError) -> None:
        """The client is told of an error."""
        self.record.error_type, self.record.error_message = error.code or "", error.message[:_MESSAGE]

    def refused(self, body: bytes) -> None:
        """The client is told of an error in an upstream's own words, which may be those of the request."""
        record = self.record
        record.stream = False
        with contextlib.suppress(*UNREADABLE):
            said = _fault(body).error
            record.error_type = _short(said.code if isinstance(said.code, str) else said.type)
            if said.message and self._recorder.mode(record.request_model, record.key) in ("full", "redacted"):
                record.error_message = said.message[:_MESSAGE]

    def _again(self) -> None:
        self._output.clear()
        self._room = _MOST if self._keeps else 0
        self._tail = b""
        self._last = 0.0
        self.timing.first_token = None
        self.timing.gaps = []
        self.record.provider_name = ""

    def end(self, status: int, outcome: Outcome, variant: bytes, done: Done | None = None) -> None:
        """It is over, and ``variant`` has answered, or was to.

        ``done`` is called once that is on the record, or can't be for now: then the rest may go out.
        """
        if self.over:
            return
        self.over = True
        try:
            answered = self._complete(status, outcome, variant)
            self._recorder.end(self.record, self._body, answered, self.trace, done)
        except Exception:
            log_fault()
            if done is not None:
                done(False)

    def _complete(self, status: int, outcome: Outcome, variant: bytes) -> bytes | None:
        """Note how it has ended; returns what was answered."""
        record, timing = self.record, self.timing
        record.status, record.outcome, record.variant = status, outcome, variant.decode()
        if self._last:
            timing.last_token = self._last
        timing.ended = perf_counter() - self._started
        answer = b"".join(self._output)
        if not self._told and record.output_tokens is None and (answer or self._tail):
            self.told(tally((answer[-TAIL:] + self._tail)[-TAIL:]))
        if not self._begun and record.request_model in self._recorder.names():
            record.model = record.request_model
        if not answer or status >= 400:
            return None
        self._look_at(answer)
        return answer

    def _look_at(self, output: bytes) -> None:
        """Note what an answer says of itself."""
        record = self.record
        if not record.response_id:
            if (name := _ID(output, 0, _HEAD)) is not None:
                record.response_id = name[1].decode("utf-8", "replace")
            if (model := _MODEL(output, 0, _HEAD)) is not None:
                record.response_model = model[1].decode("utf-8", "replace")
        if record.stream and record.sampling is not None and (record.sampling.choice_count or 1) > 1:
            record.finish_reasons = stream_reasons(output) or record.finish_reasons
        if record.input_tokens is None and record.output_tokens is not None:  # Anthropic's streams begin with it
            said = tally(output[:_HEAD].partition(b"\n\n")[0])
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


def _model(body: bytes) -> str:
    """The model of a body not all of which can be read."""
    try:
        return _short(skim(body).model)
    except ApiError:
        return ""


def _read(body: bytes) -> Asked:
    """What a body asks for; fields of other types than they should be aren't noted."""
    try:
        return read_asked(body)
    except UNREADABLE:
        return _read_field_by_field(body)


def _read_field_by_field(body: bytes) -> Asked:
    made = Asked("")
    try:
        fields = _fields(body)
    except UNREADABLE:
        return made
    for name in _NAMES & fields.keys():
        with contextlib.suppress(*UNREADABLE):
            one = read_asked(b'{"model":"","%b":%b}' % (name.encode(), bytes(fields[name])))
            setattr(made, name, getattr(one, name))
    return made


def _sampling(said: Asked) -> Sampling:
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
