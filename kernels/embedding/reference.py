"""What is an embedding? The row of a table for each token. Copied, so that providers are equal to the last bit."""

import torch


def embedding(token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows token_ids [T] int32 of table [vocabulary, H] -> [T, H]. Ids outside the vocabulary are an error."""
    return torch.nn.functional.embedding(token_ids, table)


def inputs(rows: int, vocabulary: int, width: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random (token_ids, table), the first and the last token among them where there is room."""
    draw = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(vocabulary, (rows,), generator=draw, dtype=torch.int32)
    token_ids[:2] = torch.tensor([vocabulary - 1, 0], dtype=torch.int32)[:rows]
    return token_ids, torch.randn(vocabulary, width, generator=draw).to(dtype)
