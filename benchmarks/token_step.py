"""A training step on tokens against a plain eager one, written after nanoGPT: p-hop, six loops, loss after the last.

    python benchmarks/token_step.py            # about a minute on two cores

The same model, prompts, optimiser (Adam) and loss, in turn; medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from common import synchronise, table, write
from torch import Tensor, nn
from train_step import PlainBlock

from loopprobe.config.sources import load_config
from loopprobe.model.looped import LoopedTransformer
from loopprobe.support.device import pick_device
from loopprobe.support.provenance import provenance
from loopprobe.training.replay import Replay
from loopprobe.training.steps import make_optimizers, train_step
from loopprobe.training.train import draw


class PlainTokens(nn.Module):
    """The looped model of tokens as one would write it: no hooks, nothing fused by hand."""

    def __init__(self, d_vocab: int, d_out: int, n_ctx: int, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.block, self.ln_f = PlainBlock(d_model, n_heads), nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, d_out)

    def forward(self, tokens: Tensor, n_loops: int) -> Tensor:
        e = self.wte(tokens)
        positions = self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        z = torch.zeros_like(e)
        for _ in range(n_loops):
            z = self.ln_f(self.block(z + e + positions))
        return self.lm_head(z)


def measure(device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds a step of both, in turn."""
    cfg = load_config(preset="p_hop", overrides=["train.optimizer=adam", "train.grad_clip=0.0"])
    m, t = cfg.model, cfg.train
    generator = torch.Generator().manual_seed(0)
    prompts = draw(cfg, {"length": 4, "loops": m.n_loops}, generator, device)
    ours = LoopedTransformer(m, generator).to(device)
    optimizers, replay = make_optimizers(ours, t), Replay(device)
    torch.manual_seed(0)
    plain = PlainTokens(m.d_vocab or 0, m.d_vocab_out or 0, m.n_ctx, m.d_model, m.n_heads).to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=t.adam_lr, betas=t.betas, weight_decay=0.0)
    tokens, answers = prompts.tensors

    def plain_step() -> None:
        optimizer.zero_grad()
        logits = plain(tokens, m.n_loops)[:, -answers.shape[1] :]
        F.cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
        optimizer.step()

    ways = {
        "plain eager": plain_step,
        "loopprobe": lambda: train_step(ours, optimizers, prompts, t.steps - 1, t, replay),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(repeats + 5):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            synchronise(device)
            if i >= 5:  # after warm-up
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {"median_ms": 1e3 * median, "ratio_to_plain": median / medians["plain eager"]}
        for name, median in medians.items()
    }


def page(found: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    rows = [[name, f"{row['median_ms']:.3g}", f"{row['ratio_to_plain']:.2f}"] for name, row in found["step"].items()]
    return table(["a step of p-hop, 6 loops, 32 prompts of 34 tokens", "median ms", "ratio to plain"], rows)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    device = pick_device(args.device)
    found = {"machine": provenance(device, torch.float32), "step": measure(device, args.repeats)}
    print(page(found))
    write(__file__, found, device)


if __name__ == "__main__":
    main()
