"""What does the engine know of a request that the scheduler needn't?"""

from typing import Any

from engine.constraints import Constraint
from engine.edits import Edits, Row
from engine.link import Pooling, Sampling
from engine.prompts import LastPooler, MeanPooler, Pooler, PromptReader, Scorer
from scheduler.request import Request


class Job(Request):
    """A request with what the runner and the sampler must know.

    ``seed`` is always there, drawn at random if the client gave none. ``edits``, ``constraint`` and ``scorer`` are None
    where the request asks for nothing of the kind. A job with a ``pooler`` wants an embedding and draws no token: see
    `embedding_limits`. Of a ``sketched`` one the prompt's sketch is kept in ``sketch``, once its first token is drawn.
    """

    __slots__ = ("constraint", "edits", "pooler", "reader", "sampling", "scorer", "seed", "sketch", "sketched")

    def __init__(
        self,
        *,
        sampling: Sampling,
        seed: int,
        constraint: Constraint | None = None,
        embed: Pooling = "",
        sketched: bool = False,
        **request: Any,
    ) -> None:
        tokens = request["tokens"]
        self.sampling = sampling
        self.seed = seed
        self.constraint = constraint
        self.sketched = sketched and not embed and not request.get("answered")
        self.sketch = b""
        self.pooler = _pooler(embed, len(tokens))
        prompt = tokens[: len(tokens) - request.get("answered", 0)]
        self.scorer = Scorer(prompt, sampling.prompt_logprobs) if sampling.prompt_logprobs >= 0 and not embed else None
        self.reader: PromptReader | None = self.pooler or self.scorer
        super().__init__(reads_cache=self.reader is None or not self.reader.needs_all, **request)
        self.edits = None if embed else Edits.of(sampling, prompt, self.stop_ids)

    def edit_row(self, edits: Edits) -> Row:
        """The edits of the next token's logits; ``edits`` are the job's."""
        return edits.row(self.tokens, stops_banned=self.generated < self.min_tokens)


def _pooler(embed: Pooling, count: int) -> Pooler | None:
    match embed:
        case "mean":
            return MeanPooler(count)
        case "last":
            return LastPooler(count)
        case "":
            return None
