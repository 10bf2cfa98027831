"""CUDA graphs: work that was recorded once is launched again with a single call.

A step of a small model is a thousand kernels, each of which takes longer to launch than to run. As a recorded graph
they are launched together (https://docs.pytorch.org/docs/stable/notes/cuda.html, CUDA graphs).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Replay:
    """A recorder of a training step, which replays the step while its key stays the same.

    The work of a new key is run as it is the first time and recorded the second time, so that a schedule costs two slow
    steps at each of its values. The work must change weights and the state of optimisers in place, and numbers that
    change from step to step must be tensors. On other devices than CUDA the work is always run as it is.

    Args:
        device: the device of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.key: Hashable = None
        self.recorded: Hashable = None  # the key of the graph
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.output = torch.empty(0)

    def __call__(self, key: Hashable, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return the result of the work on these inputs.

        Args:
            key: everything else that the work depends on, such as loop counts and other numbers.
            work: a function from tensors to a tensor.
            inputs: tensors on the device; their shapes are made part of the key.
        """
        if self.stream is None:
            return work(*inputs)
        key = key, tuple(tensor.shape for tensor in inputs)
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
        self.inputs = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        pool = None if self.graph is None else self.graph.pool()  # the memory of the last graph
        torch.cuda.synchronize(self.stream.device)
        with _beside(self.stream):
            graph.capture_begin(pool, "thread_local")  # torch.cuda.graph would also empty the cache
            try:
                self.output = work(*self.inputs)
            finally:
                graph.capture_end()
        self.graph = graph


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run the block on another stream, which waits for the current one; the current one waits for it afterwards."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
