"""How near to its limits does a GPU run our kernels and our engine? ``python -m bench.gpu`` says, in under ten minutes.

Two ceilings are measured first, a copy and a matrix product, and everything else stands beside what they allow.
"""
