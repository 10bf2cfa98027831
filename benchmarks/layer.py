"""A fused layer: what each way to save passes through memory gives, on a CPU.

    python benchmarks/layer.py             # two minutes on two free cores

One iteration of the default model, 62 tokens, width 64, on random states: 24 prompts without gradient, as evaluation
runs them, and 64 prompts forward and backward, as training does. Every way is held to the same result first.
All take turns, in an order that goes round; the ratios are medians over the turns, each to the layer as it is in that
turn. What compiling takes, for which a C++ compiler must be there, stands beside it: once per process and shape, and
less where torch finds what it compiled before.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import table, write
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loopprobe import load_checkpoint
from loopprobe.model.blocks import gelu_new
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.provenance import provenance

TURNS = 48
PROMPTS = {False: chunk_size(torch.device("cpu")), True: 64}  # without gradient, as evaluation has them, and with
Step = Callable[[Tensor, Tensor], Tensor]


class Written:
    """The iteration of a model of one layer, written down by its products, so that each of them can be replaced."""

    def __init__(self, model: Any) -> None:
        self.model, self.block = model, model.blocks[0]
        self.n_heads, self.d_head = model.cfg.n_heads, model.cfg.d_head

    def __call__(self, z: Tensor, e: Tensor) -> Tensor:
        x = z + e + self.model.positions(e, 0)
        x = x + self.block.attn.out(self.attend(self.after_norm(x, self.block.ln1, self.block.attn.qkv)))
        return F.layer_norm(
            self.mlp(x), x.shape[-1:], self.model.ln_final.weight, self.model.ln_final.bias, self.model.ln_final.eps
        )

    def after_norm(self, x: Tensor, norm: Any, linear: Any) -> Tensor:
        return F.linear(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps), linear.weight, linear.bias)

    def mlp(self, x: Tensor) -> Tensor:
        return x + self.block.mlp.fc_out(gelu_new(self.after_norm(x, self.block.ln2, self.block.mlp.fc_in)))

    def heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.unflatten(-1, (3, self.n_heads, self.d_head)).unbind(-3)

    def unseen(self, x: Tensor, n: int) -> Tensor:
        return x.new_full((n, n), -torch.inf).triu(1)

    def attend(self, qkv: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in self.heads(qkv))
        scores = torch.baddbmm(self.unseen(q, q.shape[1]), q, k.mT, alpha=1 / math.sqrt(self.d_head))
        z = torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, self.n_heads))
        return z.transpose(1, 2).flatten(-2)


class FusedGelu(Written):
    """GELU within the product before it, by the oneDNN operation that torch's compiler calls; it has no gradient."""

    def mlp(self, x: Tensor) -> Tensor:
        norm, linear = self.block.ln2, self.block.mlp.fc_in
        x_normed = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        product = torch.ops.mkldnn._linear_pointwise
        return x + self.block.mlp.fc_out(product(x_normed, linear.weight, linear.bias, "gelu", [], "tanh"))


class OneProduct(Written):
    """The scores of all heads in one product: every query by the keys of all heads, each among zeros."""

    def attend(self, qkv: Tensor) -> Tensor:
        q, k, v = self.heads(qkv)
        n = q.shape[1]
        spread = torch.eye(self.n_heads, dtype=q.dtype)[:, None, :, None]  # [head, 1, head, 1]
        keys = (k.transpose(1, 2)[:, :, :, None] * spread).flatten(-2).flatten(1, 2)  # [batch, head key, head d]
        scores = (q.flatten(-2) @ keys.mT).unflatten(-1, (self.n_heads, n))  # [batch, query, head, key]
        pattern = (scores / math.sqrt(self.d_head) + self.unseen(q, n)[:, None]).softmax(-1)
        values = (v.transpose(1, 2)[:, :, :, None] * spread).flatten(-2).flatten(1, 2)
        return pattern.flatten(-2) @ values


class FoldedNorm(Written):
    """Gain and offset of both layer norms folded into the product after them, once for all loops."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        pairs = ((self.block.ln1, self.block.attn.qkv), (self.block.ln2, self.block.mlp.fc_in))
        self.folded = {
            norm: (linear.weight * norm.weight, linear.bias + linear.weight @ norm.bias) for norm, linear in pairs
        }

    def after_norm(self, x: Tensor, norm: Any, linear: Any) -> Tensor:
        return F.linear(F.layer_norm(x, x.shape[-1:], eps=norm.eps), *self.folded[norm])


class OwnAttention(Written):
    """Attention by torch's fused operation."""

    def attend(self, qkv: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in self.heads(qkv))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)


def ways(model: Any, with_grad: bool) -> dict[str, Step]:
    """All that is compared, the layer as it is first."""
    found: dict[str, Step] = {
        "as it is": lambda z, e: model.step(z, e),
        "written down, without hook points": Written(model),
    }
    found["torch's fused attention"] = OwnAttention(model)
    found["scores of all heads in one product"] = OneProduct(model)
    if with_grad:
        written = Written(model)
        found["recomputed in the backward pass"] = lambda z, e: checkpoint(written, z, e, use_reentrant=False)
        found["torch.compile"] = torch.compile(Written(model))
    else:
        found["layer norm folded into the products"] = FoldedNorm(model)
        found["GELU within the product (oneDNN)"] = FusedGelu(model)
        found["torch.compile"] = torch.compile(Written(model))
        found["torch.compile, weights frozen"] = torch.compile(Written(model), options={"freezing": True})
    return found


def seconds(step: Step, z: Tensor, e: Tensor, with_grad: bool) -> float:
    """The time of one iteration, backwards too where there is a gradient."""
    started = time.perf_counter()
    with torch.set_grad_enabled(with_grad):
        made = step(z, e)
    if with_grad:
        made.sum().backward()
    return time.perf_counter() - started


def measure(model: Any, with_grad: bool) -> list[dict[str, Any]]:
    """A row for every way."""
    generator = torch.Generator().manual_seed(0)
    z, e = (torch.randn(PROMPTS[with_grad], model.cfg.n_ctx, model.cfg.d_model, generator=generator) for _ in range(2))
    z.requires_grad_(with_grad)
    torch._dynamo.reset()
    found, warm = ways(model, with_grad), {}
    expected = model.step(z, e).detach()
    for name, step in found.items():
        warm[name] = seconds(step, z, e, with_grad)
        with torch.set_grad_enabled(with_grad):
            torch.testing.assert_close(step(z, e).detach(), expected, atol=1e-4, rtol=1e-4)
    names, turns = list(found), []
    for i in range(TURNS):
        order = names[i % len(names) :] + names[: i % len(names)]  # so that none always comes after the same one
        turns.append({name: seconds(found[name], z, e, with_grad) for name in order})
    first = names[0]
    return [
        {
            "way": name,
            "gradient": with_grad,
            "ms": 1e3 * statistics.median(turn[name] for turn in turns),
            "ratio": statistics.median(turn[name] / turn[first] for turn in turns),
            "warm_s": warm[name] if "compile" in name else None,
        }
        for name in found
    ]


def page(found: dict[str, Any]) -> str:
    """The table of what was measured."""
    head = ("an iteration", "gradient", *(f"ratio, {key.replace('_', ' ')}" for key in found["rows"]), "warm-up, s")
    by_threads = list(found["rows"].values())
    rows = [
        (
            same[0]["way"],
            "with" if same[0]["gradient"] else "without",
            *(f"{row['ratio']:.2f} ({row['ms']:.1f} ms)" for row in same),
            "–" if same[0]["warm_s"] is None else f"{same[0]['warm_s']:.0f}",
        )
        for same in zip(*by_threads, strict=True)
    ]
    return table(head, rows)


def main() -> None:
    """Measure, show and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = load_checkpoint("lr-b20-T10").model
    found: dict[str, Any] = {"machine": provenance("cpu", torch.float32), "rows": {}}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rows = [row for with_grad in (False, True) for row in measure(model, with_grad)]
        found["rows"][f"{threads}_thread{'s' if threads > 1 else ''}"] = rows
    print(page(found))
    write(__file__, found)


if __name__ == "__main__":
    main()
