"""The weights that training starts from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from loopprobe.model.looped import LoopedTransformer


def initialise(model: LoopedTransformer, generator: torch.Generator | None) -> None:
    """normal(0, initializer_range or 1/√fan_in), output projections divided by √(2 n_layers), biases 0.

    Positions and loops have a standard deviation of 0.02 where none is given, and an embedding, which adds nothing
    up, has 1. With role_range the positions of all x start from one more vector, drawn with that standard deviation,
    and those of all y from another, so that attention can tell inputs from labels before it has learnt to.
    """
    given = model.cfg.initializer_range
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=given or module.in_features**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=given or 1.0, generator=generator)
    for name in ("W_pos", "W_loop"):
        if hasattr(model, name):
            nn.init.normal_(getattr(model, name), std=given or 0.02, generator=generator)
    with torch.no_grad():
        if model.cfg.role_range is not None:
            roles = torch.empty(model.tokens_per_point, model.cfg.d_model)
            nn.init.normal_(roles, std=model.cfg.role_range, generator=generator)
            for i, role in enumerate(roles):
                model.W_pos[i :: model.tokens_per_point] += role
        for layers in (model.blocks, getattr(model, "prelude", ()), getattr(model, "coda", ())):
            for block in layers:
                for projection in (block.attn.out, block.mlp.fc_out):
                    projection.weight /= math.sqrt(2 * len(layers))
