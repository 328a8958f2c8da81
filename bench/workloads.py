"""Which requests does the engine comparison send? The same token ids to every side.

Standard library only: the sides import this from environments of their own.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """``requests`` prompts of ``shared`` tokens that all have in common, then ``own`` of their own."""

    requests: int
    shared: int
    own: int
    output: int

    @property
    def output_tokens(self) -> int:
        """How many tokens a right answer to all of it has."""
        return self.requests * self.output

    @property
    def longest(self) -> int:
        """Tokens of one request, prompt plus answer."""
        return self.shared + self.own + self.output

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Token ids, drawn evenly. Another seed gives prompts that no prefix cache has seen."""
        draw = random.Random(seed)
        shared = draw.choices(range(vocab_size), k=self.shared)
        return [shared + draw.choices(range(vocab_size), k=self.own) for _ in range(self.requests)]

    def shortened(self) -> "Workload":
        """The same in miniature: enough to see that a side works, too little to say how fast."""
        return Workload(min(self.requests, 3), min(self.shared, 32), min(self.own, 8), 4)


WORKLOADS = {
    "a": Workload(requests=64, shared=0, own=128, output=128),
    "b": Workload(requests=1, shared=0, own=128, output=256),
    "c": Workload(requests=64, shared=512, own=32, output=32),
}
DESCRIPTIONS = {
    "a": "64 requests, 128 tokens in, 128 out",
    "b": "1 request, 128 in, 256 out",
    "c": "64 requests, 512 shared + 32 in, 32 out",
}
