"""What does the scheduler know of a request, and what does a step's plan say?"""

from collections.abc import Sequence
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from scheduler.steptime import Work

# CLOSING: all the tokens that it may have are drawn, or being drawn.
WAITING, PREFILL, DECODE, CLOSING, ENDED = range(5)
# In place of a token that is being drawn.
PENDING: Final = -1


class Request:
    """Some tokens, and the wish for more. Subclass it to carry what only the engine knows.

    ``computed`` is the number of tokens whose KV is in the pool, or will be when the steps under way have run, in
    ``blocks`` (block ids in the order of the tokens). ``tokens`` begins with the prompt (``prompt_len`` tokens) and
    grows by each token drawn; its last one is `PENDING` while a step under way draws it. The first ``given`` of them
    came with the request: more than the prompt where it goes on with an answer that was begun elsewhere. ``cached`` of
    these were found in the prefix cache at the first admission, and the first slice was planned at ``first_scheduled``.
    ``finish`` is why the request ended, once it has. ``due`` is when its next token is.
    """

    __slots__ = (
        "adapter",
        "admitted",
        "arrival",
        "background",
        "blocks",
        "cached",
        "charged",
        "computed",
        "due",
        "finish",
        "first_scheduled",
        "given",
        "hashes",
        "limit",
        "max_len",
        "max_tokens",
        "min_tokens",
        "owed",
        "preemptions",
        "priority",
        "prompt_len",
        "published",
        "reads_cache",
        "salt",
        "shared",
        "state",
        "stop_ids",
        "tenant",
        "tokens",
        "tpot",
        "ttft",
        "uid",
    )

    def __init__(
        self,
        *,
        uid: int,
        tokens: list[int],
        max_tokens: int,
        max_len: int,
        ttft: float,
        tpot: float,
        stop_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        arrival: float = 0.0,
        tenant: str = "",
        priority: int = 0,
        salt: str = "",
        adapter: str = "",
        background: bool = False,
        reads_cache: bool = True,
        answered: int = 0,
    ) -> None:
        """Describe a request; nothing happens before `Scheduler.add`.

        Args:
            uid: unique among the live requests of one scheduler.
            tokens: the prompt, and what is there of its answer; the list becomes the request's own.
            max_tokens: how many tokens the answer may have in all.
            max_len: how long prompt and answer together may become.
            ttft, tpot: token ``j`` is due at ``arrival`` + ``ttft`` + ``j`` * ``tpot`` (seconds).
            stop_ids: a token that ends the request, once at least ``min_tokens`` were drawn (itself included).
            tenant: who is owed service under fairness.
            priority: a higher class goes before all lower ones.
            salt, adapter: KV is shared only among requests that agree in both.
            background: it runs only in steps that nobody else needs.
            reads_cache: cached blocks spare it the computation; else every token of its prompt is computed, for
                somebody who wants to see what the model makes of each. Its own blocks are found by others anyway.
            answered: how many of the last ``tokens`` are the answer's: somebody else drew them.

        Raises:
            ValueError: there is no prompt, or nothing may be drawn.
        """
        if len(tokens) <= answered:
            raise ValueError(f"request {uid} has no tokens: at least one is needed to draw the next from")
        if max_tokens <= answered or len(tokens) >= max_len:
            room = f"max_tokens {max_tokens}, a context of {max_len}, and a prompt of {len(tokens) - answered} tokens"
            raise ValueError(f"request {uid} has room for no token: {room}")
        self.uid = uid
        self.tokens = tokens
        self.given = len(tokens)
        self.prompt_len = len(tokens) - answered
        self.max_tokens = max_tokens
        self.max_len = max_len
        self.limit = min(self.prompt_len + max_tokens, max_len)
        self.stop_ids = stop_ids
        self.min_tokens = min_tokens
        self.arrival = arrival
        self.ttft = ttft
        self.tpot = tpot
        self.due = arrival + ttft
        self.tenant = tenant
        self.priority = priority
        self.salt = salt
        self.adapter = adapter
        self.background = background
        self.reads_cache = reads_cache
        self.state = WAITING
        self.computed = 0
        self.cached = 0
        self.first_scheduled: float | None = None
        self.finish: Literal["stop", "length"] | None = None
        self.blocks: list[int] = []
        # The chain over its full blocks; how many of these have been published, and found at the last admission.
        self.hashes: list[bytes] = []
        self.published = 0
        self.shared = 0
        # Bookkeeping of the scheduler: its place in the order of admission, the tokens that its tenant has paid for,
        # and those that the backlog counts for it.
        self.admitted = 0
        self.charged = 0
        self.owed = 0
        self.preemptions = 0

    @property
    def generated(self) -> int:
        """How many tokens the answer has so far."""
        return len(self.tokens) - self.prompt_len

    @property
    def holds_kv(self) -> bool:
        """Whether it runs: it was admitted, and has neither ended nor lost its KV."""
        return WAITING < self.state < ENDED

    @property
    def sought(self) -> Sequence[bytes]:
        """The hashes of the blocks that it would take from the cache."""
        return self.hashes if self.reads_cache else ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uid}: {self.computed} of {len(self.tokens)} tokens computed>"


R = TypeVar("R", bound=Request)


class Slice(NamedTuple, Generic[R]):
    """Compute the KV of ``request.tokens[start : start + count]``.

    ``samples``: the slice reaches the last known token, so the step draws the next one.
    """

    request: R
    start: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody wants of a slice
    samples: bool


class Plan(NamedTuple, Generic[R]):
    """One step: what to compute, how long that should take (seconds), and who lost their KV to make room."""

    slices: list[Slice[R]]
    predicted: float
    preempted: list[R]
    work: Work
