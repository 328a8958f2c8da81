"""Which messages do a gateway and a worker exchange, and how are they framed?

A link is one stream connection (a Unix socket on one host, TCP across hosts) between one gateway process and one
worker, and carries every request between the two. A frame is a 4-byte little-endian length and a msgpack map whose
``type`` names the message. Both sides ignore fields that they don't know and fill in the defaults of those that are
missing, so that a fleet can be upgraded worker by worker; `PROTOCOL` counts the changes that break this.

On connecting, the worker speaks first: `Progress` while it still loads, then `Hello`, after which it accepts
`Submit`. Where the two share a secret, both prove that they know it before anything else is said: `Challenge`, `Proof`,
`Welcome`. Each request ends with exactly one `Output` that has a ``finish`` or one `Failed`, unless the gateway
aborted it: an aborted request is never heard of again.

Times are durations in seconds. Neither side ever sees the other's clock.
"""

import hmac
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

PROTOCOL: Final = 1
MAX_FRAME: Final = 64 * 1024 * 1024

Finish = Literal["stop", "length"]
FailureCode = Literal["context_length_exceeded", "invalid_request", "overloaded", "draining", "internal"]


class LinkError(ConnectionError):
    """The peer sent bytes that are no frame of this protocol; the connection can't be used any more."""


Pooling = Literal["", "mean", "last"]


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a request's tokens are drawn. The defaults mean "off"; greedy is ``temperature == 0``.

    ``repetition_penalty`` divides the positive and multiplies the negative logits of every token that prompt or answer
    has (Keskar et al. 2019, as transformers does it); then ``presence_penalty`` once and ``frequency_penalty`` for each
    occurrence are subtracted for those that the *answer* has, and ``logit_bias`` is added, as at OpenAI. ``bad_words``
    are token sequences that the answer must not contain. ``grammar`` is one of llguidance's (Lark, or JSON), which the
    whole answer must match. ``top_logprobs`` asks for that many of the likeliest tokens beside each one drawn;
    ``prompt_logprobs`` likewise for each token of the prompt, -1 meaning none at all.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    grammar: str = ""
    top_logprobs: int = 0
    prompt_logprobs: int = -1


class Slo(msgspec.Struct, frozen=True, omit_defaults=True):
    """When tokens are due: token ``j`` at arrival + ``ttft`` + ``j`` x ``tpot`` (seconds)."""

    ttft: float
    tpot: float


class Submit(msgspec.Struct, frozen=True, omit_defaults=True, tag="submit"):
    """Begin a request. ``id`` is the gateway's own number, unique on its connection for as long as it is open.

    ``tokens`` is the prompt: token ids as little-endian int32. ``age`` is how long the request has waited already.
    ``tenant`` is who is owed service under fairness; a higher ``priority`` goes first, and ``background`` work is done
    in steps that nobody else needs. ``salt`` keeps a prefix cache entry among its equals. With ``embed`` the request
    wants no tokens but the prompt's hidden states after the final norm, pooled: its one `Output` has no tokens, an
    ``embedding``, and the finish reason ``stop``.

    The last ``answered`` of the ``tokens`` are the beginning of the answer, which another worker has drawn before it
    was lost. Everything goes on from there as if this one had drawn them (``sampling`` is that of the whole answer),
    and only what is new comes back.

    With ``sketch`` its first output has a sketch of the prompt, unless that goes on with an answer.
    """

    id: int
    tokens: bytes
    sampling: Sampling
    tenant: str = ""
    priority: int = 0
    age: float = 0.0
    slo: Slo | None = None
    salt: str = ""
    adapter: str = ""
    background: bool = False
    embed: Pooling = ""
    answered: int = 0
    sketch: bool = False


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Forget these requests at once. Unknown ids are no fault: they may have finished meanwhile."""

    ids: list[int]


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """Make the LoRA adapter in ``folder`` (PEFT's format, on the worker's host) what requests can name as ``adapter``.

    ``id`` is one as `Submit` has, and the end is a request's: an `Output` without tokens whose finish is ``stop``, or
    `Failed`. To load again what is loaded already is no fault.
    """

    id: int
    name: str
    folder: str


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Finish what was submitted, refuse what comes, then exit with status 0."""


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """Say from now on which blocks the prefix cache has: first all that it has now. For workers that can ``blocks``."""


class Progress(msgspec.Struct, frozen=True, omit_defaults=True, tag="progress"):
    """The worker is still starting: ``done`` of ``total`` units (bytes, kernels) of ``stage``."""

    stage: str
    done: int = 0
    total: int = 0


class Hello(msgspec.Struct, frozen=True, omit_defaults=True, tag="hello"):
    """The worker is ready. ``folder`` is where the gateway finds the tokenizer and the chat template.

    ``kv_tokens`` is what the KV pool holds in all; ``max_model_len`` bounds prompt plus answer of one request.
    ``embedding_size`` is the length of an embedding, 0 where there are none.
    ``defaults`` are the sampling fields that the model's ``generation_config.json`` sets. At most ``heartbeat`` seconds
    go by from one frame to the next, whatever the worker does; 0: it promises nothing.
    """

    protocol: int
    model: str
    folder: str
    pid: int
    device: str
    dtype: str
    max_model_len: int
    vocab_size: int
    block_size: int
    kv_tokens: int
    max_running: int
    engine: str = "native"
    eos_token_ids: tuple[int, ...] = ()
    defaults: dict[str, float] = {}
    kv_events: str = ""
    kv_replay: str = ""
    capabilities: tuple[str, ...] = ()
    embedding_size: int = 0
    heartbeat: float = 0.0


class PromptScores(msgspec.Struct, frozen=True, array_like=True):
    """What the model thought of a prompt's tokens: N of them, the first excepted, for which there is no prediction.

    Arrays as little-endian bytes: ``logprobs`` [N] float32 in nats, ``ranks`` [N] int32 (1 is the likeliest), and the
    ``top`` likeliest tokens at each place, the likeliest first: ``top_tokens`` [N, top] int32, ``top_logprobs``
    [N, top] float32.
    """

    top: int
    logprobs: bytes
    ranks: bytes
    top_tokens: bytes
    top_logprobs: bytes


class Output(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """What one step brought one request: its new tokens, each with log-probability and entropy (nats).

    The log-probability and the entropy are those of the model's own distribution, before temperature and filters.
    ``entropies`` is empty where the engine doesn't know them, as vLLM doesn't.
    ``cached`` (prompt tokens found in the prefix cache) and ``queued`` (seconds from arrival to the first step)
    are set on a request's first output only, and so is ``prompt``, where it was asked for. ``top_tokens`` and
    ``top_logprobs`` have, for each token, the likeliest ones in its place, the likeliest first, if any were asked for.
    ``embedding`` is [hidden] float32, little-endian. ``low_margins`` is how many of the tokens came from places where
    the model's two likeliest were less than 0.1 apart in probability, None where the engine doesn't know.
    ``sketch``, on a request's first output if it was asked for, is 64 float16, little-endian: a random projection of
    the state that it is drawn from, the same one wherever a model is of this width. Encoded as an array: fields may
    only be appended.
    """

    id: int
    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]
    finish: Finish | None = None
    cached: int = 0
    queued: float = 0.0
    top_tokens: list[list[int]] = []
    top_logprobs: list[list[float]] = []
    prompt: PromptScores | None = None
    embedding: bytes = b""
    low_margins: int | None = None
    sketch: bytes = b""


class Step(msgspec.Struct, frozen=True, omit_defaults=True, tag="step"):
    """All that one engine step brought to this connection's requests. ``seconds`` is how long the step took."""

    outputs: list[Output]
    seconds: float = 0.0


class Load(msgspec.Struct, frozen=True, omit_defaults=True, tag="load"):
    """How busy the worker is; sent when it changed, at most every 50 ms, and again every 250 ms as a sign of life.

    ``waiting_tokens`` is prefill still to be computed, ``backlog`` the predicted seconds until it has been.
    ``kv_used`` and ``kv_total`` are in tokens, ``prefill_rate`` in tokens/s. Fields that end in ``s_total`` count from
    the worker's start. ``decoding`` requests are in every step, and read the KV of ``decode_context`` tokens together.
    ``coefficients`` are what the worker has learnt of its steps' time, those of ``scheduler.steptime.Coefficients``:
    seconds for a step, and for each token, token of context, (query, key) pair and request in it. A worker that is
    ``draining`` takes no new requests.
    """

    waiting: int
    running: int
    waiting_tokens: int
    kv_used: int
    kv_total: int
    backlog: float
    prefill_rate: float = 0.0
    steps_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    output_tokens_total: int = 0
    preemptions_total: int = 0
    decoding: int = 0
    decode_context: int = 0
    coefficients: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    draining: bool = False


class Blocks(msgspec.Struct, frozen=True, omit_defaults=True, tag="blocks"):
    """What became of the prefix cache's blocks since the last of these, in the order of the fields.

    Blocks are known by the 64 bits of `scheduler.blocks.short_hash`, little-endian, one after the other; parents come
    before their children. What came and went in between isn't mentioned.
    """

    cleared: bool = False
    removed: bytes = b""
    stored: bytes = b""


class Failed(msgspec.Struct, frozen=True, omit_defaults=True, tag="failed"):
    """A request that ends without an answer, and why, in words for the person who sent it."""

    id: int
    code: FailureCode
    message: str
    retry_after: float = 0.0


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """The first word of a worker that wants to know whom it talks to: prove that you know the secret.

    ``nonce`` is 32 random bytes, never used twice. See `proof_of_gateway`.
    """

    nonce: bytes


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    """A gateway's answer to `Challenge`: its ``proof``, and a ``nonce`` for which it wants the worker's in turn."""

    nonce: bytes
    proof: bytes


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """A worker's answer to a `Proof` that is right: its own. What follows is the link as without a secret."""

    proof: bytes


ToWorker = Submit | Abort | Drain | Proof | LoadAdapter | Follow
ToGateway = Progress | Hello | Step | Load | Failed | Challenge | Welcome | Blocks

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_gateway: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)


def frame(message: ToWorker | ToGateway) -> bytearray:
    """The bytes that carry ``message``: ready to be written to the connection."""
    out = bytearray(4)
    _encoder.encode_into(message, out, 4)
    out[:4] = (len(out) - 4).to_bytes(4, "little")
    return out


class FrameReader:
    """Cuts a byte stream into frames. ``feed`` it what was read, and it yields the payloads that are complete."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Yield each complete payload.

        Raises:
            LinkError: a frame claims more than `MAX_FRAME` bytes.
        """
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        try:
            while end - start >= 4:
                length = int.from_bytes(buffer[start : start + 4], "little")
                if length > MAX_FRAME:
                    raise LinkError(f"a frame claims {length} bytes, more than the {MAX_FRAME} allowed")
                if end - start - 4 < length:
                    break
                payload = bytes(buffer[start + 4 : start + 4 + length])
                start += 4 + length
                yield payload
        finally:
            del buffer[:start]


def proof_of_gateway(secret: bytes, workers_nonce: bytes, gateways_nonce: bytes) -> bytes:
    """What only a gateway that knows the ``secret`` can say: HMAC-SHA256 (RFC 2104) over both nonces and its role.

    The secret itself never travels, and a proof is worth nothing on another connection or in the other direction.
    Compare with `hmac.compare_digest`.
    """
    return hmac.digest(secret, b"penstock gateway" + workers_nonce + gateways_nonce, "sha256")


def proof_of_worker(secret: bytes, workers_nonce: bytes, gateways_nonce: bytes) -> bytes:
    """The same for a worker."""
    return hmac.digest(secret, b"penstock worker" + workers_nonce + gateways_nonce, "sha256")


def decode_to_worker(payload: bytes) -> ToWorker:
    """Decode a frame that a gateway sent.

    Raises:
        LinkError: the payload is no message to a worker.
    """
    try:
        return _to_worker.decode(payload)
    except msgspec.DecodeError as error:
        raise LinkError(f"not a message to a worker: {error}") from error


def decode_to_gateway(payload: bytes) -> ToGateway:
    """Decode a frame that a worker sent.

    Raises:
        LinkError: the payload is no message to a gateway.
    """
    try:
        return _to_gateway.decode(payload)
    except msgspec.DecodeError as error:
        raise LinkError(f"not a message to a gateway: {error}") from error


def parse_address(address: str) -> tuple[Literal["unix"], str] | tuple[Literal["tcp"], tuple[str, int]]:
    """Split ``unix:/path/to.sock`` or ``tcp://host:port``.

    Raises:
        ValueError: the address is neither.
    """
    if address.startswith("unix:") and len(address) > 5:
        return "unix", address[5:]
    if address.startswith("tcp://"):
        host, colon, port = address[6:].rpartition(":")
        if colon and host and port.isdigit() and int(port) < 65536:
            return "tcp", (host.strip("[]"), int(port))
    raise ValueError(f"{address!r} is no address: expected unix:/path/to.sock or tcp://host:port")
