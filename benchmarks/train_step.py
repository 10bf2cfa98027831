"""Training: a step of loopprobe against a plain eager nanoGPT-style step, and both recipes to the same error.

    python benchmarks/train_step.py            # about 12 minutes on two cores

Part 1 times one step of the same model on the same prompts (b 20, T 10, full curriculum), the variants in
turn, and reports medians, ratios, and the share of the rate at which this machine multiplies the step's own matrices,
measured in the same turns. Part 2 trains, in turn and in slices, with this project's recipe and with the
reference's (its published recipe on this model, its curriculum shrunk to 20,000 steps; the plain step), until each
reaches the target error on held-out prompts or has used its budget. Only training counts, not evaluation.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from common import synchronise, table, write
from counts import counted
from torch import Tensor, nn

from loopprobe.config.schema import Config
from loopprobe.config.sources import load_config
from loopprobe.model import blocks
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.evaluate import query_error
from loopprobe.support.device import pick_device
from loopprobe.support.provenance import provenance
from loopprobe.tasks import Prompts, held_out
from loopprobe.training.replay import Replay
from loopprobe.training.steps import make_optimizers, train_step
from loopprobe.training.train import draw

PRODUCTS, N_PRODUCTS = "matrix products", 40

# The plain model, as one would write it after nanoGPT: no hooks, nothing fused by hand.


class PlainBlock(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.c_attn, self.c_proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.c_fc, self.c_out = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(c, dim=2)
        q, k, v = (y.view(b, t, self.n_heads, c // self.n_heads).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))
        h = self.c_fc(self.ln_2(x))
        h = 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * torch.pow(h, 3.0))))
        return x + self.c_out(h)


class PlainLooped(nn.Module):
    def __init__(self, n_dims: int, n_points: int, d_model: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.read_in, self.read_out = nn.Linear(n_dims, d_model), nn.Linear(d_model, 1)
        self.wpe = nn.Embedding(2 * n_points, d_model)
        self.blocks = nn.ModuleList(PlainBlock(d_model, n_heads) for _ in range(n_layers))
        self.ln_f = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                output = name.endswith(("c_proj.weight", "c_out.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers) if output else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def loop(self, z: Tensor, e: Tensor) -> Tensor:
        x = z + e + self.wpe(torch.arange(e.shape[1], device=e.device))
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x)

    def forward(self, xs: Tensor, ys: Tensor, n_loops: int, window: int) -> list[Tensor]:
        b, n, d = xs.shape
        wide = torch.cat([ys.view(b, n, 1), torch.zeros(b, n, d - 1, device=ys.device)], dim=2)
        e = self.read_in(torch.stack([xs, wide], dim=2).view(b, 2 * n, d))
        z = torch.zeros_like(e)
        predictions = []
        for i in range(n_loops):
            if i < n_loops - window:
                with torch.no_grad():
                    z = self.loop(z, e)
            else:
                z = self.loop(z, e)
                predictions.append(self.read_out(z)[:, ::2, 0])
        return predictions


def plain_step(
    model: PlainLooped, optimizer: torch.optim.Optimizer, prompts: Prompts, n_loops: int, window: int
) -> None:
    optimizer.zero_grad()
    predictions = model(prompts.xs, prompts.ys, n_loops, min(window, n_loops))
    loss = sum((p - prompts.ys).square().mean() for p in predictions) / len(predictions)
    loss.backward()
    optimizer.step()


@dataclass
class Contestant:
    """A model in training: ``step(i, prompts)`` does one update."""

    name: str
    cfg: Config
    device: torch.device
    plain: bool
    model: Any = None
    steps: int = 0
    seconds: float = 0.0
    short: int = blocks.SHORT  # tokens, up to which attention is written out
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # steps, seconds, error
    reached: dict[float, float] = field(default_factory=dict)  # from a target to the seconds until it

    def __post_init__(self) -> None:
        torch.manual_seed(self.cfg.train.seed)
        self.generator = torch.Generator().manual_seed(self.cfg.train.seed)
        m, t = self.cfg.model, self.cfg.train
        self.mastered = t.mastery and t.mastery.start
        self.measured: list[Tensor] = []  # since the mastery schedule was last asked
        if self.plain:
            self.model = PlainLooped(m.n_dims, m.n_points, m.d_model, m.n_heads, m.n_layers).to(self.device)
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=t.adam_lr, betas=t.betas)
        else:
            self.model = LoopedTransformer(m, self.generator).to(self.device)
            self.optimizers = make_optimizers(self.model, t)
            self.replay = Replay(self.device)

    def step(self, i: int, prompts: Prompts) -> None:
        t = self.cfg.train
        if self.plain:
            plain_step(self.model, self.optimizer, prompts, t.sizes(i)["loops"], t.loop_window)
        else:
            with mock.patch.object(blocks, "SHORT", self.short):
                measured = train_step(self.model, self.optimizers, prompts, i, t, self.replay)
            if self.mastered is not None:
                self._master(measured, prompts.measures)

    def _master(self, measured: Tensor, names: Sequence[str]) -> None:
        """Go on with the mastery schedule where a training would write a row of metrics."""
        t = self.cfg.train
        self.measured.append(measured)
        if len(self.measured) == t.log_every:
            means = torch.stack(self.measured).mean(0).tolist()
            self.mastered = t.next_mastered(self.mastered, dict(zip(names, means, strict=True)))
            self.measured.clear()

    def sizes(self, i: int) -> dict[str, int]:
        """The sizes of a step that comes next."""
        return self.cfg.train.sizes(i, self.mastered)

    def draw(self, i: int) -> Prompts:
        return draw(self.cfg, self.sizes(i), self.generator, self.device)

    def train(self, steps: int) -> None:
        started = time.perf_counter()
        for i in range(self.steps, self.steps + steps):
            self.step(i, self.draw(i))
        synchronise(self.device)
        self.steps += steps
        self.seconds += time.perf_counter() - started

    def error(self, prompts: Prompts) -> float:
        n_loops = self.cfg.model.n_loops
        if not self.plain:
            return query_error(self.model, prompts, n_loops)[-1].mean().item()
        with torch.no_grad():
            last = self.model(prompts.xs, prompts.ys, n_loops, 1)[-1][:, -1]
        return ((last - prompts.ys[:, -1]).square().mean() / self.cfg.model.n_dims).item()


def time_steps(contestants: list[Contestant], repeats: int) -> dict[str, list[float]]:
    """Seconds a step at full curriculum, the contestants in turn; and of ``N_PRODUCTS`` products of the MLP's shape."""
    times: dict[str, list[float]] = {c.name: [] for c in contestants}
    last = contestants[0].cfg.train.steps - 1
    prompts = contestants[0].draw(last)
    m = contestants[0].cfg.model
    left = torch.randn(prompts.ys.numel() * 2, m.d_model, device=contestants[0].device)
    right = torch.randn(m.d_model, m.d_mlp, device=contestants[0].device)
    times[PRODUCTS] = []
    for i in range(repeats + 3):
        started = time.perf_counter()
        for _ in range(N_PRODUCTS):
            left @ right
        synchronise(contestants[0].device)
        if i >= 3:
            times[PRODUCTS].append(time.perf_counter() - started)
        for contestant in contestants:
            started = time.perf_counter()
            contestant.step(contestant.cfg.train.steps - 1, prompts)
            synchronise(contestant.device)
            if i >= 3:  # after warm-up
                times[contestant.name].append(time.perf_counter() - started)
    return times


def race(contestants: list[Contestant], targets: tuple[float, ...], budget: float, slice_: int = 25) -> None:
    """Train in turn, a slice each, until each has reached all targets, or used its budget or its steps."""
    prompts = held_out(contestants[0].cfg.task, 256, 31, 10, seed=1).to(contestants[0].device)
    running = list(contestants)
    while running:
        for c in list(running):
            c.train(min(slice_, c.cfg.train.steps - c.steps))
            error = c.error(prompts)
            c.curve.append((c.steps, round(c.seconds, 1), error))
            print(f"{c.name}: step {c.steps}, {c.seconds:.0f} s, error {error:.3f}", flush=True)
            for target in targets:
                if error <= target:
                    c.reached.setdefault(target, round(c.seconds, 1))
            if len(c.reached) == len(targets) or c.seconds >= budget or c.steps >= c.cfg.train.steps:
                running.remove(c)


def page(found: dict[str, Any]) -> str:
    """The measurements as tables in Markdown."""
    steps = [
        [
            name,
            f"{row['median_ms']:.3g} ({row['min_ms']:.3g} to {row['max_ms']:.3g})",
            f"{row['ratio_to_plain']:.2f}",
            "–" if "bfloat16" in name else f"{row['share_of_matmul_rate']:.0%}",  # the rate is that of float32
        ]
        for name, row in found["step"].items()
    ]
    races = []
    for name, row in found["race"].items():
        after = row["reached_after_s"]
        reached = f"not in {row['seconds']:.0f}" if after is None else f"{after:.3g}"
        races.append([name, reached, f"{row['steps']:,}", f"{row['error']:.2g}"])
    rate = f"rate of matrix products ({found['matmul_flops_per_s'] / 1e9:.0f} GFLOP/s)"
    return "\n\n".join(
        [
            table(
                ["a step, full curriculum", "median ms (min to max)", "ratio to plain", f"share of the {rate}"], steps
            ),
            table([f"training to error {found['target_error']:g}", "seconds", "steps", "error at the end"], races),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each variant")
    parser.add_argument("--target", type=float, default=0.1, help="query error / n_dims to reach")
    parser.add_argument("--budget", type=float, default=600, help="seconds of training for each recipe")
    args = parser.parse_args()
    device = pick_device(args.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    machine = provenance(device, torch.float32)
    ours, reference = load_config(), load_config(preset="reference")

    timed = [
        Contestant("loopprobe, default recipe", ours, device, plain=False),
        Contestant("loopprobe, reference recipe", reference, device, plain=False),
        Contestant("plain nanoGPT-style, reference recipe", reference, device, plain=True),
    ]
    if device.type == "cpu":
        timed.append(Contestant("loopprobe, default recipe, torch's attention", ours, device, plain=False, short=0))
    if device.type == "cuda":
        timed.append(Contestant("loopprobe, default recipe, launched kernel by kernel", ours, device, plain=False))
        timed[-1].replay = Replay(torch.device("cpu"))  # of no graph
        half = load_config(overrides=["train.precision=bfloat16"])
        timed.append(Contestant("loopprobe, default recipe, bfloat16", half, device, plain=False))
    times = time_steps(timed, args.repeats)
    counting = Contestant("", ours, torch.device("cpu"), plain=False)  # a graph that is replayed shows no operations
    model, prompts = ours.model, counting.draw(ours.train.steps - 1)
    flops = counted(lambda: counting.step(ours.train.steps - 1, prompts))["flops"]
    per_product = 2 * prompts.ys.numel() * 2 * model.d_model * model.d_mlp
    rate = N_PRODUCTS * per_product / statistics.median(times.pop(PRODUCTS))
    plain = statistics.median(times[timed[2].name])
    rows = {
        name: {
            "median_ms": 1000 * statistics.median(t), "min_ms": 1000 * min(t), "max_ms": 1000 * max(t),
            "ratio_to_plain": statistics.median(a / b for a, b in zip(t, times[timed[2].name], strict=True)),
            "share_of_matmul_rate": flops / statistics.median(t) / rate,
        }
        for name, t in times.items()
    }  # fmt: skip
    for name, row in rows.items():
        print(
            f"{name}: {row['median_ms']:.3g} ms a step, {row['ratio_to_plain']:.2f} of plain ({1000 * plain:.3g} ms), "
            f"{row['share_of_matmul_rate']:.0%} of the rate of its matrix products ({rate / 1e9:.0f} GFLOP/s)"
        )

    racers = [
        Contestant("loopprobe, default recipe", ours, device, plain=False),
        Contestant("plain nanoGPT-style, reference recipe", reference, device, plain=True),
    ]
    race(racers, (args.target,), args.budget)
    result = {
        "machine": machine,
        "step": rows,
        "step_flops": flops,
        "matmul_flops_per_s": rate,
        "target_error": args.target,
        "budget_s": args.budget,
        "race": {
            c.name: {"reached_after_s": c.reached.get(args.target), "steps": c.steps, "seconds": c.seconds,
                     "error": c.curve[-1][2], "curve": c.curve}
            for c in racers
        },
    }  # fmt: skip
    print(page(result))
    write(__file__, result, device)


if __name__ == "__main__":
    main()
