"""The gradients that a cache holds beside its activations, where they were asked for."""

from __future__ import annotations

from typing import Any

from loopprobe.errors import LoopprobeError


class WithGradients:
    """The part of a cache that holds the gradients at the same points, in a cache of their own."""

    _grads: Any = None

    @property
    def grads(self) -> Any:
        """The gradients at the same points, where ``loss`` asked for them.

        Raises:
            LoopprobeError: it did not; what is kept has no graph either, unless ``detach`` was False.
        """
        if self._grads is None:
            raise LoopprobeError(
                "no gradients are kept: give run_with_cache loss=, or detach=False for torch.autograd.grad"
            )
        return self._grads

    @grads.setter
    def grads(self, grads: Any) -> None:
        self._grads = grads
