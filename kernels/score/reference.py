"""What did the model think of tokens that were given, such as a prompt's?"""

from dataclasses import dataclass
from typing import Final

import torch

from kernels.sample.reference import likeliest

LOGPROB_TOLERANCE: Final = 2e-4


@dataclass(frozen=True, slots=True)
class Scores:
    """``logprobs`` [T] float32 in nats and ``ranks`` [T] int32 (1 is the likeliest) of the targets.

    ``top_tokens`` [T, top] int32 and ``top_logprobs`` [T, top] float32 are each row's likeliest tokens.
    """

    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_tokens: torch.Tensor
    top_logprobs: torch.Tensor


def score(logits: torch.Tensor, targets: torch.Tensor, top: int) -> Scores:
    """Score one target per row of logits [T, V] (float32 or bfloat16); targets [T] int32, ids below V.

    A rank is 1 and the number of tokens with a larger logit: equal ones share it. The likeliest are as
    `kernels.sample.reference.likeliest` gives them.
    """
    count, device = logits.shape[0], logits.device
    logprobs = torch.empty(count, dtype=torch.float32, device=device)
    ranks = torch.empty(count, dtype=torch.int32, device=device)
    top_tokens = torch.empty(count, top, dtype=torch.int32, device=device)
    top_logprobs = torch.empty(count, top, dtype=torch.float32, device=device)
    for row, target in enumerate(targets.tolist()):
        own = logits[row].double().log_softmax(-1)
        logprobs[row] = own[target]
        ranks[row] = 1 + (logits[row] > logits[row, target]).sum()
        top_tokens[row], top_logprobs[row] = likeliest(own, top)
    return Scores(logprobs, ranks, top_tokens, top_logprobs)


def inputs(rows: int, vocabulary: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits and targets; in each second row the target is among the likeliest, as a prompt's tokens are."""
    draw = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, vocabulary, generator=draw) * torch.rand(rows, 1, generator=draw) * 8).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=draw)
    targets[::2] = logits[::2].topk(min(3, vocabulary)).indices[:, -1]
    return logits, targets.to(torch.int32)
