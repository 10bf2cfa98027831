"""The weights that training starts from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from loopprobe.model.looped import LoopedTransformer


def initialise(model: LoopedTransformer, generator: torch.Generator | None) -> None:
    """normal(0, initializer_range or 1/√fan_in), output projections divided by √(2 n_layers), biases 0.

    Positions and loops have a standard deviation of 0.02 where none is given, and an embedding, which adds nothing
    up, has 1. With copy_head one head is made by hand, see ``_make_copy_head``.
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
        for layers in (model.blocks, getattr(model, "prelude", ()), getattr(model, "coda", ())):
            for block in layers:
                for projection in (block.attn.out, block.mlp.fc_out):
                    projection.weight /= math.sqrt(2 * len(layers))
        if model.cfg.copy_head:
            _make_copy_head(model, generator)


def _make_copy_head(model: LoopedTransformer, generator: torch.Generator | None) -> None:
    """Let the first head attend from both tokens of a point to its x, and copy x into directions of its own.

    This is the first layer of the construction by von Oswald et al. (arXiv 2212.07677): behind it the token of a label
    holds the input, too. It uses orthogonal directions of the residual stream: those that vectors are read into; those
    of a vector that the two tokens of a point share; those that are copied to; and one that tells x from y. Sizes are
    such that the tokens sought have scores about 4 above those of others.
    """
    cfg, attn = model.cfg, model.blocks[0].attn
    sizes, length = cfg.copy_head_directions, math.sqrt(cfg.d_model) / 4  # a quarter of what a vector is read into
    drawn = nn.init.normal_(torch.empty(cfg.d_model, cfg.d_model - cfg.n_dims), generator=generator)
    basis = torch.linalg.qr(torch.cat([model.read_in.weight, drawn], 1))[0].T
    read, place, target, kind = basis[: sum(sizes)].split(sizes)
    points = nn.init.normal_(torch.empty(-(-cfg.n_ctx // 2), cfg.d_head - 1), generator=generator)
    tokens = torch.arange(cfg.n_ctx)
    model.W_pos.add_(length * (F.normalize(points)[tokens // 2] @ place + (2 * (tokens % 2) - 1)[:, None] * kind))
    q, k, v = (weight[: cfg.d_head] for weight in attn.qkv.weight.chunk(3))
    q[:-1] = k[:-1] = 2 / length * cfg.d_head**0.25 * place
    q[-1], k[-1] = 0, -4 * (cfg.d_head / cfg.d_model) ** 0.25 * kind
    attn.qkv.bias[cfg.d_head - 1] = 4 * (cfg.d_head / cfg.d_model) ** 0.25
    copied = slice(len(target))
    v[copied], attn.out.weight[:, copied] = read[copied], target.T
