"""What is known of a request once it is over, whichever way it took? What rollouts and shadows look at."""

from typing import NamedTuple

from gateway.telemetry.metrics import Outcome
from gateway.traffic.answers import Answer


class Ending(NamedTuple):
    """How a request of a model with variants ended, seen from the client's side. Times in seconds.

    Attributes:
        status: the HTTP status; 499 where the client left before there was one.
        outcome: what the metrics count it as.
        ttft: from the request's last byte to the first token; None of answers that came whole from elsewhere.
        itl: mean time between two tokens; None with fewer than two, or where `ttft` is.
        e2e: from the request's last byte to its answer's.
        output_tokens: as the answer says; 0 where it doesn't.
        uncertainty: mean surprisal (negative log-probability, nats) of the answer's tokens; None where it isn't known.
        answer: what was said, as far as it has been read; None where nobody wanted to know, or nothing was said.
    """

    status: int
    outcome: Outcome
    ttft: float | None = None
    itl: float | None = None
    e2e: float = 0.0
    output_tokens: int = 0
    uncertainty: float | None = None
    answer: Answer | None = None
