"""The weights of heads of a wrapped module, found by the names of their projections and checked by running them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.errors import LoopprobeError
from loopprobe.model.head_weights import HeadWeights

APART = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))
FUSED = ("qkv_proj", "Wqkv", "qkv", "query_key_value")
OUT = ("o_proj", "out_proj", "proj", "dense", "o")
NEAR = 1e-3  # of the size of values, which half precision keeps


@dataclass(frozen=True)
class _Attention:
    """The weights of one attention, and the modules that hold them."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_V: Float[Tensor, "head d_head"] | None
    reads: nn.Linear
    writes: nn.Linear


def read_heads(model: Any, fold: bool | None = None) -> HeadWeights:
    """Return what every head of a wrapped module's loop reads and writes with, norms left out.

    The names of the projections are those of well-known architectures. A run of the wrapping's example checks that the
    values of every head, and what goes into the output, are those of these weights.

    Args:
        model: a ``WrappedModel``.
        fold: must not be true: norms stand at other places in every architecture.

    Raises:
        LoopprobeError: norms shall be folded, or the heads are not what their weights say.
    """
    kind = type(model.module).__name__
    if fold:
        raise LoopprobeError(f"fold needs norms at known places, and {kind} is wrapped: leave it out")
    anatomy, order = model.anatomy, model.wiring.order
    if anatomy.attention is None:
        raise LoopprobeError(
            f"the heads of {kind} pass no hook points, so that their weights cannot be told: choose another model"
        )
    found = {path: _found(model, path, kind) for path in dict.fromkeys(order)}
    _require_right(model, found, kind)
    each = [found[path] for path in order]
    return HeadWeights(
        layers=tuple(layer for layer in range(len(order)) for _ in range(anatomy.n_heads)),
        numbers=tuple(range(anatomy.n_heads)) * len(order),
        **{name: torch.cat([getattr(one, name) for one in each]) for name in ("W_Q", "W_K", "W_V", "W_O")},
        between=None,
        is_added=not model.wiring.opens,
        n_free=each[0].W_O.shape[-1],
        words="as they stand, before norms and turns of queries and keys",
    )


def _found(model: Any, path: str, kind: str) -> _Attention:
    """The projections of one layer's attention, by their names."""
    attention = model.module.get_submodule(f"{path}.{model.anatomy.attention}")
    linear = {name: part for name, part in attention.named_children() if isinstance(part, nn.Linear)}
    apart = next((names for names in APART if all(name in linear for name in names)), None)
    fused = next((name for name in FUSED if name in linear), None)
    out = next((name for name in OUT if name in linear), None)
    if (apart is None and fused is None) or out is None:
        raise LoopprobeError(
            f"the attention of {kind} holds {', '.join(linear) or 'no linear maps'}, which are not known as queries, "
            "keys, values and output: choose another model"
        )
    n_heads, writes = model.anatomy.n_heads, linear[out]
    d_head = writes.in_features // n_heads
    sizes = [n_heads * d_head, *[(linear[fused].out_features - n_heads * d_head) // 2] * 2] if fused else []
    reads = linear[apart[2] if apart else str(fused)]
    rows = [linear[name].weight for name in apart] if apart else list(reads.weight.split(sizes))
    bias = reads.bias if apart or reads.bias is None else reads.bias.split(sizes)[2]

    def per_head(part: Tensor) -> Tensor:
        split = part.unflatten(0, (-1, d_head))
        return split.repeat_interleave(n_heads // len(split), 0)

    W_Q, W_K, W_V = (per_head(part).mT for part in rows)
    W_O = rearrange(writes.weight, "m (h d) -> h d m", d=d_head)
    return _Attention(W_Q, W_K, W_V, W_O, None if bias is None else per_head(bias), reads, writes)


def _require_right(model: Any, found: dict[str, _Attention], kind: str) -> None:
    """Raise LoopprobeError where a run has other values, or writes something else, than the weights say."""
    taken: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        taken.setdefault(module, args[0])

    with ExitStack() as stack:
        for one in found.values():
            for part in (one.reads, one.writes):
                stack.callback(part.register_forward_hook(note).remove)
        stack.enter_context(torch.no_grad())
        _, cache = model.run_with_cache(*model.example, n_loops=1, names=["v", "attn_z"])
    for path, one in found.items():
        layer = model.wiring.order.index(path)
        values = torch.einsum("bpm,hmd->bphd", taken[one.reads], one.W_V)
        if one.b_V is not None:
            values = values + one.b_V
        pairs = ((values, cache[0, "v", layer]), (taken[one.writes], cache[0, "attn_z", layer].flatten(-2)))
        for expected, passed in pairs:
            if expected.shape != passed.shape or (expected - passed).norm() > NEAR * passed.norm():
                raise LoopprobeError(
                    f"the heads of {kind} are more than their projections, such as gates or norms of values, so that "
                    "weights alone do not tell them: choose another model"
                )
