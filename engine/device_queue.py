"""How does work get to a device that computes on its own, and how do results come back?

`DeviceQueue` does everything at once, on any device: the definition. `CudaQueue` puts it into streams: copies to the
GPU come from pinned memory, results leave over a stream of their own, and what runs again and again is captured as a
CUDA graph. Nothing in it waits but the function that `fetch` returns.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


class DeviceQueue:
    """Work that is over when the call returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def put(self, array: np.ndarray, into: torch.Tensor | None = None) -> torch.Tensor:
        """The array on the device, in ``into`` if that is given; the array may be changed afterwards."""
        tensor = torch.from_numpy(array)
        return tensor.to(self.device, copy=True) if into is None else into.copy_(tensor)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to copy a tensor, which may be overwritten afterwards, to the host; call what returns to have it."""
        copy = tensor.to("cpu", copy=True)
        return lambda: copy

    def capture(self, work: Callable[[], T]) -> Callable[[], T]:
        """``work`` as something that can be done again and again on the same tensors; it is done at least once."""
        work()
        return work


class CudaQueue(DeviceQueue):
    """Work that is put into streams of a GPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._back = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def put(self, array: np.ndarray, into: torch.Tensor | None = None) -> torch.Tensor:
        # Pinned memory comes from torch's cache, which gives it out again only once the copy is done.
        pinned = torch.from_numpy(array).pin_memory()
        return pinned.to(self.device, non_blocking=True) if into is None else into.copy_(pinned, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        # A copy on the device first, so that the next step may overwrite the tensor while this one travels.
        copy = tensor.clone()
        self._back.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._back):
            host = torch.empty(copy.shape, dtype=copy.dtype, pin_memory=True)
            host.copy_(copy, non_blocking=True)
            copy.record_stream(self._back)
            # Blocking: the thread sleeps while it waits, and leaves its core to the gateway.
            done = torch.cuda.Event(blocking=True)
            done.record(self._back)

        def wait() -> torch.Tensor:
            done.synchronize()
            return host

        return wait

    def capture(self, work: Callable[[], T]) -> Callable[[], T]:
        work()  # kernels are compiled and libraries set up outside of the capture
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()

        def replay() -> T:
            graph.replay()
            return result

        return replay


def queue_for(device: torch.device) -> DeviceQueue:
    """The queue of a device."""
    return CudaQueue(device) if device.type == "cuda" else DeviceQueue(device)
