"""QK-norm, RoPE and KV write: which provider?"""

from kernels.rope_kv_write.reference import QkNorm, rope_kv_write

__all__ = ["QkNorm", "rope_kv_write"]
