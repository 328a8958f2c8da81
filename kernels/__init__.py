"""One folder per operation: its definition in plain torch, and the Numba and Triton kernels judged against it."""
