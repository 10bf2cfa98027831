"""CUDA graphs: work that a GPU has been told once is told again with a single call.

A step of a small model is a thousand kernels, each of which takes longer to launch than to run. Recorded as a graph
they are launched at once (https://docs.pytorch.org/docs/stable/notes/cuda.html, CUDA graphs).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Replay:
    """Does the work of a training step as it was recorded, while its key stays the same; off CUDA it does it anew.

    The first time that a key comes the work is done as it stands, the second time it is recorded: a schedule costs two
    slow steps at each of its values. What the work changes (weights, the state of optimisers) it has to change in
    place, and numbers that change from step to step have to come as tensors.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.key: Hashable = None
        self.recorded: Hashable = None  # the key of the graph
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.output = torch.empty(0)

    def __call__(self, key: Hashable, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """What the work makes of these inputs.

        Args:
            key: all else that the work depends on: loop counts, numbers that it holds.
            work: from tensors to a tensor.
            inputs: on the device; their shapes belong to the key.
        """
        if self.stream is None:
            return work(*inputs)
        key = key, tuple(given.shape for given in inputs)
        if key != self.key:
            self.key = key
            with _beside(self.stream):
                return work(*inputs)
        if key != self.recorded:
            self._record(work, inputs)
            self.recorded = key
        torch._foreach_copy_(self.inputs, list(inputs))
        assert self.graph is not None
        self.graph.replay()
        return self.output.clone()

    def _record(self, work: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        assert self.stream is not None
        self.inputs = [given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        pool = None if self.graph is None else self.graph.pool()  # the memory of the last graph
        torch.cuda.synchronize(self.stream.device)
        with _beside(self.stream):
            graph.capture_begin(pool, "thread_local")  # torch.cuda.graph would empty the cache besides
            try:
                self.output = work(*self.inputs)
            finally:
                graph.capture_end()
        self.graph = graph


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """On a stream that waits for the current one, and that the current one then waits for."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
