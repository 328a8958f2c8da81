"""How long does a step take on a machine that isn't here?

    t = step + tokens(n) + context * Σcontext + pair * Σpairs + request * requests

``tokens(n)`` is piecewise linear in the number of tokens: ``token`` seconds each up to the first of the ``bends``, and
what a bend says from there on. A GPU has one, where reading the weights no longer takes longer than multiplying. A CPU
has several: its kernels go from one way of multiplying to another, and the caches fill. The other terms are those of
`scheduler.steptime`, which has no bends: what the scheduler learns is therefore as approximate here as on a real
machine.

The named machines are derived below from bytes, operations and four shares of what a GPU's data sheet promises. They
are estimates of a good engine, not measurements of ours; a measured step log gives a better model
(`bench.simulate.calibrate`).
"""

from pathlib import Path
from typing import NamedTuple

import msgspec

from scheduler.steptime import Work

# Measured on an H200: copies at 4.3 of 4.8 TB/s, bf16 products at 790 of 989 TFLOP/s. Taken for the others as well.
_COPY_SHARE = 4.3 / 4.8
_PRODUCT_SHARE = 790 / 989
# What a whole model's products reach of that, with norms, activations and small tails between them: Llama-3.1-8B on an
# H200 comes to 29 us a prefill token.
_MODEL_SHARE = 0.70
# Paged attention, of the copy rate in decoding and of the product rate in prefill.
_DECODE_SHARE = 0.92
_PREFILL_SHARE = 0.55
# Links between GPUs, of their data sheet; and seconds for an all-reduce of nothing over eight of them.
_LINK_SHARE = 0.8
_ALL_REDUCE = 10e-6
# Seconds a step for launches and the host that aren't hidden, and seconds a request for its logits and its draw.
_STEP = 0.5e-3
_REQUEST = 1e-6
# Of a GPU's memory, what a server takes; bytes of it for a step's activations and graphs.
_MEMORY_SHARE = 0.9
_ACTIVATIONS = 4e9
_BF16 = 2


class Gpu(NamedTuple):
    """A data sheet: bytes/s, bf16 FLOP/s (dense), bytes, and bytes/s to other GPUs in one direction."""

    bandwidth: float
    products: float
    memory: float
    link: float


class Model(NamedTuple):
    """A decoder with grouped-query attention in bf16, on ``gpus`` GPUs under tensor parallelism."""

    parameters: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    gpus: int = 1


GPUS = {
    "h200": Gpu(bandwidth=4.8e12, products=989e12, memory=141e9, link=450e9),
    "h100": Gpu(bandwidth=3.35e12, products=989e12, memory=80e9, link=450e9),
    "a100": Gpu(bandwidth=2.039e12, products=312e12, memory=80e9, link=300e9),
}
MODELS = {
    "llama-3.1-8b": Model(8.03e9, layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128),
    "qwen3-0.6b": Model(0.596e9, layers=28, hidden=1024, heads=16, kv_heads=8, head_dim=128),
    "llama-3.1-70b-tp8": Model(70.6e9, layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, gpus=8),
}


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device and a model on it; times in seconds, ``kv_tokens`` what its KV cache holds.

    ``bends``: from so many tokens in a step on, each further one takes so long; up to the first it takes ``token``.
    ``ahead``: step N+1 is planned while N runs, as on a GPU. ``jitter`` is the standard deviation of the logarithm of a
    step's time around the formula's, which stays its mean. ``source`` says where the figures come from.
    """

    name: str
    step: float
    token: float
    context: float
    pair: float
    request: float
    bends: tuple[tuple[float, float], ...] = ()
    jitter: float = 0.0
    kv_tokens: int
    ahead: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse a machine on which time would run backwards.

        Raises:
            ValueError: naming what is wrong.
        """
        for name in ("step", "token", "context", "pair", "request", "jitter"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must not be negative")
        last = 0.0
        for tokens, slope in self.bends:
            if not tokens > last:
                raise ValueError(f"bends: one at {tokens:g} tokens after {last:g}: they must ascend, from above 0")
            if not slope >= 0:
                raise ValueError(f"bends: {slope} from {tokens:g} tokens on: a token must not take negative time")
            last = tokens
        if not self.step + self.token > 0:
            raise ValueError("step and token are both 0: a step must take some time")
        if self.kv_tokens < 1:
            raise ValueError(f"kv_tokens {self.kv_tokens}: must be at least 1")

    def seconds(self, work: Work) -> float:
        """How long a step with this ``work`` takes."""
        tokens, context, pairs, requests = work
        seconds = self.step + self.context * context + self.pair * pairs + self.request * requests
        begins, slope = 0.0, self.token
        for bend, beyond in self.bends:
            if tokens <= bend:
                break
            seconds += slope * (bend - begins)
            begins, slope = bend, beyond
        return seconds + slope * (tokens - begins)


def derive(gpu_name: str, model_name: str) -> Machine:
    """The machine of a named GPU and model, from bytes and operations.

    Raises:
        KeyError: one of the names isn't known.
    """
    gpu, model = GPUS[gpu_name], MODELS[model_name]
    copy, product = gpu.bandwidth * _COPY_SHARE, gpu.products * _PRODUCT_SHARE
    # Every step reads all weights once, and each token takes a multiplication and an addition with each. (The
    # embedding table isn't read whole, nor the head applied to each token: 7 % of Llama-3.1-8B that this counts.)
    weights = model.parameters * _BF16 / model.gpus
    reading = weights / copy
    multiplying = 2 * model.parameters / model.gpus / (product * _MODEL_SHARE)
    # Keys and values of every layer; queries times keys and weights times values, 2 FLOP a component each.
    kv_bytes = 2 * model.layers * model.kv_heads * model.head_dim * _BF16 / model.gpus
    pair_flops = 4 * model.layers * model.heads * model.head_dim / model.gpus
    step, token = _STEP, 0.0
    if model.gpus > 1:
        # Two all-reduces a layer; a ring moves each activation 2 (n - 1) / n times.
        moved = 2 * (model.gpus - 1) / model.gpus * model.hidden * _BF16
        step += 2 * model.layers * _ALL_REDUCE
        token = 2 * model.layers * moved / (gpu.link * _LINK_SHARE)
    room = gpu.memory * _MEMORY_SHARE - weights - _ACTIVATIONS
    return Machine(
        name=f"{gpu_name}/{model_name}",
        step=step + reading,
        token=token,
        context=kv_bytes / (copy * _DECODE_SHARE),
        pair=pair_flops / (product * _PREFILL_SHARE),
        request=_REQUEST,
        bends=((reading / multiplying, token + multiplying),),
        kv_tokens=int(room / kv_bytes),
        ahead=True,
        source="derived from bytes and operations",
    )


def names() -> list[str]:
    """The machines that `derive` knows, as `find` takes them."""
    return [f"{gpu}/{model}" for gpu in GPUS for model in MODELS]


def find(name: str) -> Machine:
    """The machine of that name, or the one that a JSON file describes (see `save`).

    Raises:
        ValueError: there is neither, or the file isn't one of a machine; it says what there is.
    """
    if name in names():
        gpu, _, model = name.partition("/")
        return derive(gpu, model)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"{name!r} is no file and none of the known machines: {', '.join(names())}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Machine)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{name} is no machine as `--calibrate` writes it: {error}") from error


def save(machine: Machine, path: Path) -> None:
    """Write a machine as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(machine), indent=2) + b"\n")
