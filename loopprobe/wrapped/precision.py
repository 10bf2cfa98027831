"""Double precision in models whose code casts to single precision, as norms, rotary positions and softmax often do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _Double(TorchFunctionMode):
    """Casts to float32 become casts to float64 while it lasts."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            return args[0].double()
        if any(given is torch.float32 for given in (*args, *kwargs.values())):
            args = tuple(torch.float64 if given is torch.float32 else given for given in args)
            kwargs = {key: torch.float64 if given is torch.float32 else given for key, given in kwargs.items()}
        return func(*args, **kwargs)


def as_precise_as(module: nn.Module) -> AbstractContextManager[Any]:
    """Let a module whose weights are in float64 compute in float64 throughout, while the block lasts."""
    return _Double() if next(module.parameters()).dtype == torch.float64 else nullcontext()
