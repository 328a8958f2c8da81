"""How busy is a worker, and how long would a newcomer wait?"""

from typing import NamedTuple

from scheduler.lane import Lane
from scheduler.request import R
from scheduler.steptime import StepTime, Work


class LoadReport(NamedTuple):
    """How busy the worker is. ``kv_*`` in tokens, ``backlog`` in seconds, ``prefill_rate`` in tokens/s.

    ``waiting_tokens`` is prefill still to be computed, ``backlog`` the predicted seconds until it has been; neither
    counts background requests, for nobody waits behind them. ``decoding`` requests, background aside, are in every
    step, and read the KV of ``decode_context`` tokens together. The ``*_total`` fields count from the start.
    """

    waiting: int
    running: int
    waiting_tokens: int
    kv_used: int
    kv_total: int
    backlog: float
    prefill_rate: float
    steps_total: int
    prompt_tokens_total: int
    cached_tokens_total: int
    output_tokens_total: int
    preemptions_total: int
    decoding: int
    decode_context: int


def backlog(lane: Lane[R], steptime: StepTime, tpot: float) -> float:
    """Predicted seconds until all prefill of ``lane`` has been computed; decodes want a token each ``tpot`` seconds."""
    if not lane.owed_tokens:
        return 0.0
    work = Work(lane.owed_tokens, lane.owed_tokens, lane.owed_pairs, lane.line.waiting + len(lane.prefilling))
    decode_seconds = steptime.predict(lane.decode_work()) if lane.decoding else 0.0
    # Decodes take their share of every step until then.
    share = min(decode_seconds / max(tpot, 1.25 * decode_seconds), 0.8)
    return steptime.predict(work) / (1 - share)
