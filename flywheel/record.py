"""What is kept of a request? One `Record`, whatever its end: answered, refused, failed, cancelled, cut off by a crash.

Names are those of OpenTelemetry's GenAI conventions where there is one, without the prefix, because SQL doesn't like
dots: `ATTRIBUTES` has the full ones. On disk a record is a msgpack array, so that a field is known by its place and
costs no name: encoding one with 5 kB of text takes 0.7 µs (EPYC, Python 3.11), its JSON 5 µs.

Versions: the first three fields stay what they are for ever, because recovery reads them alone. New fields are added at
the end, of `Record` as of its parts, with a default; none is removed, renamed or moved. Then an old reader skips what
it doesn't know, a new one finds defaults in what is old, and `VERSION` says who wrote it.
"""

from bisect import bisect_left
from typing import Final, NamedTuple

import msgspec

VERSION: Final = 1

# Upper bounds of a record's histogram of gaps between tokens, in seconds: two to an octave, from half a millisecond to
# eight seconds. What is longer is counted in one more.
GAP_BOUNDS: Final = tuple(round(0.0005 * 2 ** (step / 2), 7) for step in range(29))


class Sampling(msgspec.Struct, array_like=True, gc=False):
    """What the client asked of sampling; None where it said nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    choice_count: int | None = None
    stop_sequences: tuple[str, ...] = ()


class Timing(msgspec.Struct, array_like=True, gc=False):
    """When what happened, in seconds after the record's ``received``; None where it didn't.

    Attributes:
        queued: it was let in, and waited to be placed.
        placed: a worker, or an upstream, got it.
        first_token: its first token came, or an answer's first byte, which is its last if it comes whole; not an error.
        last_token: its last one came.
        ended: it was over, for the client.
        gaps: how many pauses between two tokens' arrivals were how long, by `GAP_BOUNDS`; empty where nobody looked.
    """

    queued: float | None = None
    placed: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    gaps: list[int] = []


class Uncertainty(msgspec.Struct, array_like=True, gc=False):
    """How sure the model was of what it wrote, over all tokens of all choices. In nats.

    ``low_margin`` is the share (0 to 1) of tokens whose probability was hardly above the runner-up's.
    """

    mean_entropy: float | None = None
    max_entropy: float | None = None
    min_logprob: float | None = None
    mean_logprob: float | None = None
    low_margin: float | None = None


class Content(msgspec.Struct, array_like=True, gc=False):
    """What was asked and answered, as far as the content mode lets it be kept.

    Attributes:
        mode: ``full``, ``redacted``, ``hash`` or ``none``.
        input: the request's JSON body.
        output: what was answered: a JSON array of OpenAI's messages, one per choice; or an answer's whole body, or its
            stream's bytes, as they passed through: `flywheel.conversation` makes messages of them.
        input_hash: of both, keyed, in mode ``hash``: equal texts have equal hashes.
        output_hash: see there.
        sealed: both, encrypted under the user's key, in place of ``input`` and ``output``.
    """

    mode: str = "none"
    input: bytes | None = None
    output: bytes | None = None
    input_hash: bytes | None = None
    output_hash: bytes | None = None
    sealed: bytes | None = None


class Record(msgspec.Struct, array_like=True, gc=False):
    """One request. It is made at admission and filled in on the way; until told otherwise, it was ``aborted``.

    Attributes:
        version: of this struct, as its writer knew it.
        request_id: what feedback names; a client's own, which is told apart where it comes twice to one process.
        received: when its last byte came, in microseconds since 1970 (UTC).
        outcome: ``ok``; ``invalid`` (the client's fault); ``refused`` (a limit, or a full queue); ``failed`` (the
            server's fault); ``disconnected`` (the client left first); ``aborted`` (the process ended before it did).
        status: the HTTP status; 499 where the client left before there was one; 0 where nobody knows.
        operation_name: ``chat``, ``text_completion``, ``embeddings``, …
        endpoint: the path.
        model: the served name that it was for; empty where there is none of that name. The table has a partition for
            each, so that a client must not be able to make new ones.
        request_model: what the client called it.
        response_model: what answered, by its own account.
        variant: which of the model's variants; ``target``: where that is served; ``worker``: by which process, or URL.
        adapter: the LoRA adapter, if any.
        provider_name: ``penstock``, ``vllm``, or ``openai`` for all that speaks as that does; empty before any had it.
        trace_id: of its W3C trace context, in hex, as ``span_id`` is.
        response_id: the answer's id, where it isn't ``request_id``.
        key: the id of the API key; ``user`` and ``session`` (``x-session-id``): as the client named them.
        sticky_hash: where it was in [0, 1) when its variant was chosen; None where there was nothing to choose.
        input_tokens: of the prompt; ``cached_tokens`` were found in a prefix cache; ``output_tokens``: all that were
            generated, ``reasoning_tokens`` of them for reasoning. None where nobody knows.
        stream: whether the answer was one.
        finish_reasons: one per choice, in the words of ``/v1/chat/completions`` whichever the endpoint; "" for one that
            was cut off.
        error_type: our error code, or an upstream's; ``error_message``: for the reader.
        attempts: how many workers or upstreams it was sent to.
        shadow_of: the request that this one copies; empty as yet: shadows are no requests of users, and not on record.
        sampling, timing, uncertainty, content: see there.
        embedding: of the prompt: 64 float16, little-endian.
        tags: what the client wants to find it by: OpenAI's ``metadata``.
    """

    version: int
    request_id: str
    received: int
    outcome: str = "aborted"
    status: int = 0
    operation_name: str = ""
    endpoint: str = ""
    model: str = ""
    request_model: str = ""
    response_model: str = ""
    variant: str = ""
    target: str = ""
    worker: str = ""
    adapter: str = ""
    provider_name: str = ""
    trace_id: str = ""
    span_id: str = ""
    response_id: str = ""
    key: str = ""
    user: str = ""
    session: str = ""
    sticky_hash: float | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    stream: bool = False
    finish_reasons: tuple[str, ...] = ()
    error_type: str = ""
    error_message: str = ""
    attempts: int = 0
    shadow_of: str = ""
    sampling: Sampling | None = None
    timing: Timing | None = None
    uncertainty: Uncertainty | None = None
    content: Content | None = None
    embedding: bytes | None = None
    tags: dict[str, str] | None = None


class Feedback(msgspec.Struct, array_like=True, gc=False):
    """What somebody thought of an answer, at any time later. The first three fields are as in `Record`.

    Attributes:
        received: when the feedback came, in microseconds since 1970 (UTC).
        score: in a scale of the client's own; ``label``: in words of its own.
        correction: what the answer should have been; ``preferred``: the answer that was better; ``comment``: free text.
        key: the id of the API key that sent it; ``user``: who.
        sealed: the three texts, encrypted under the user's key, in their place.
    """

    version: int
    request_id: str
    received: int
    score: float | None = None
    label: str = ""
    correction: str | None = None
    preferred: str | None = None
    comment: str | None = None
    key: str = ""
    user: str = ""
    sealed: bytes | None = None


class Head(NamedTuple):
    """What every frame of the log begins with."""

    version: int
    request_id: str
    received: int


# The fields that OpenTelemetry's GenAI conventions have a name for, and that name.
ATTRIBUTES: Final = {
    "operation_name": "gen_ai.operation.name",
    "provider_name": "gen_ai.provider.name",
    "request_model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "response_id": "gen_ai.response.id",
    "session": "gen_ai.conversation.id",
    "user": "enduser.id",
    "input_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "error_type": "error.type",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "choice_count": "gen_ai.request.choice.count",
    "stop_sequences": "gen_ai.request.stop_sequences",
    "input": "gen_ai.input.messages",
    "output": "gen_ai.output.messages",
}

encode: Final = msgspec.msgpack.Encoder().encode
"""A record, or feedback, as the log keeps it."""

decode_record: Final = msgspec.msgpack.Decoder(Record).decode
"""The record in a frame. Raises ``msgspec.DecodeError`` where there is none."""

decode_feedback: Final = msgspec.msgpack.Decoder(Feedback).decode
"""The feedback in a frame. Raises ``msgspec.DecodeError`` where there is none."""


class _Head(msgspec.Struct, array_like=True, gc=False):
    version: int
    request_id: str
    received: int


_decode_head: Final = msgspec.msgpack.Decoder(_Head).decode


def decode_head(body: bytes) -> Head:
    """The first three fields, which no version changes, without reading the rest.

    Raises:
        msgspec.DecodeError: it begins otherwise.
    """
    found = _decode_head(body)
    return Head(found.version, found.request_id, found.received)


def count_gap(gaps: list[int], seconds: float) -> None:
    """Count one pause between two tokens in ``gaps``, a `Timing`'s, which grows to its full length with the first."""
    if not gaps:
        gaps.extend([0] * (len(GAP_BOUNDS) + 1))
    gaps[bisect_left(GAP_BOUNDS, seconds)] += 1
