"""A step's inputs, made on the device: which provider?"""

import torch

from kernels import device
from kernels.step_inputs import reference
from kernels.step_inputs.reference import PARAMETERS, RequestState, StepBuffers, StepRequest

__all__ = ["PARAMETERS", "RequestState", "StepBuffers", "StepRequest", "prepare", "update"]


def update(state: RequestState, places: torch.Tensor, values: torch.Tensor) -> None:
    """`reference.update` by the fastest provider for the state's device."""
    if device.on_gpu(state.rows):
        from kernels.step_inputs import triton

        triton.update(state, places, values)
    else:
        reference.update(state, places, values)


def prepare(state: RequestState, request: StepRequest, buffers: StepBuffers) -> None:
    """`reference.prepare` by the fastest provider for the state's device."""
    if device.on_gpu(state.rows):
        from kernels.step_inputs import triton

        triton.prepare(state, request, buffers)
    else:
        reference.prepare(state, request, buffers)
