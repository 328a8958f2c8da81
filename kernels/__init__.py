"""Which operations does a decoder step consist of, and where is each defined?

One folder per operation. ``reference.py`` is the definition in plain torch, with a generator of test inputs and the
tolerance that other providers must keep; ``numba.py`` is the CPU's; the folder's ``__init__`` has the function that
callers use, and picks the provider by device and dtype. `kernels.kv_cache` is the memory they share.
"""
