"""Each operation's calls at the constants that production uses: what `tests.kernels.gpu_resources` compiles.

A module has ``calls``: triples of a label, the oldest architecture that can run it, and what to call.
"""
