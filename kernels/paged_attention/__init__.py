"""Paged attention: which provider?"""

from kernels.paged_attention.reference import AttentionMetadata, paged_attention

__all__ = ["AttentionMetadata", "paged_attention"]
