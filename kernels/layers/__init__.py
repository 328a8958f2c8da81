"""All layers of a dense decoder in one compiled call: what does it need, and when can it be had?

A step of a small model is over before Python has called the eight kernels of each layer. So where all weights are in
our own form (`kernels.linear.Form.PANELS`), one compiled function goes through the layers. What it computes is what the
kernels compute, called one after the other.
"""

from kernels.layers.numba import LayerParts, Layers

__all__ = ["LayerParts", "Layers"]
