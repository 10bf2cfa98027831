"""The roofline of a training step: where its time goes, and where the floor is that this machine sets.

    python benchmarks/roofline.py          # a minute on two idle cores; --png draws docs/roofline.png

Every operation of a step (default recipe, full curriculum) is timed while it runs. Floating-point operations are those
of torch's formulas for products, and one for every number that another operation makes; bytes are what an operation
reads and writes. The two roofs are measured in the same run: the rate of a product of two large matrices, and the
bandwidth of a copy of arrays as large as those of the step, and of arrays far beyond every cache. They are what an
operation is compared with (Williams, Waterman and Patterson 2009); one that only reads, or whose arrays are still in a
cache, can be faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import table, write
from counts import FREE
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from loopprobe.config.sources import load_config
from loopprobe.model.looped import LoopedTransformer
from loopprobe.support.memory import keep_freed_memory
from loopprobe.support.provenance import provenance
from loopprobe.tasks import held_out
from loopprobe.training.replay import Replay
from loopprobe.training.steps import make_optimizers, train_step

KINDS = {  # by the beginning of an operation's name
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "activation": ("gelu", "sigmoid", "addcmul", "mul_"),
    "softmax": ("_softmax",),
    "layer norm": ("native_layer_norm",),
    "sums": ("add", "sum", "sub", "mean"),
    "copies": ("clone", "copy", "_to_copy", "cat", "stack", "fill", "zero", "ones", "new"),
}
LARGE, STEPS = 2**28, 7  # bytes of an array beyond every cache; steps that are timed


class Timer(TorchDispatchMode):
    """Notes seconds, operations and bytes of all that runs inside it, by kind; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.flops, self.bytes = Counter[str](), Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - started
        name = func._schema.name
        if func.is_view or name in (*FREE, "aten::empty_like"):
            return out
        kind = _kind(name.removeprefix("aten::"))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.seconds[kind] += seconds
        self.bytes[kind] += sum(t.numel() * t.itemsize for t in (*made, *read))
        if func._overloadpacket in flop_registry:
            self.flops[kind] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        else:
            self.flops[kind] += sum(t.numel() for t in made)
        return out


def _kind(name: str) -> str:
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "optimizer and the rest")


def _best(work: Any, times: int) -> float:
    """The least seconds of one of several runs."""
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def roofs(n_bytes: int) -> dict[str, float]:
    """The largest rate of products, operations a second, and the bandwidth of copies of this size and of large ones."""
    a, b = torch.randn(2, 2048, 2048)
    rate = 2 * 2048**3 / _best(lambda: a @ b, 9)

    def bandwidth(size: int) -> float:
        source, target = torch.randn(2, size // 4)
        return 2 * size / _best(lambda: target.copy_(source), max(9, LARGE // size))

    return {"flops_per_s": rate, "bytes_per_s": bandwidth(n_bytes), "bytes_per_s_large": bandwidth(LARGE)}


def measure() -> dict[str, Any]:
    """Time the steps and the roofs."""
    keep_freed_memory()
    cfg = load_config()
    model = LoopedTransformer(cfg.model, torch.Generator().manual_seed(0))
    optimizers, replay = make_optimizers(model, cfg.train), Replay(torch.device("cpu"))
    prompts = held_out(cfg.task, cfg.train.batch_size, cfg.model.n_points, cfg.model.n_dims)

    def step() -> None:
        train_step(model, optimizers, prompts, cfg.train.steps - 1, cfg.train, replay)

    for _ in range(2):
        step()
    plain, timers = [], []
    for _ in range(STEPS):
        plain.append(_best(step, 1))
        with Timer() as timer:
            step()
        timers.append(timer)
    hidden = cfg.train.batch_size * 2 * cfg.model.n_points * cfg.model.d_mlp * 4
    kinds = {
        kind: {"seconds": statistics.median(t.seconds[kind] for t in timers), "flops": timers[0].flops[kind],
               "bytes": timers[0].bytes[kind]}
        for kind in timers[0].seconds
    }  # fmt: skip
    machine = provenance(torch.device("cpu"), torch.float32)
    return {"machine": machine, "step_s": statistics.median(plain), "kinds": kinds, "array_bytes": hidden} | roofs(
        hidden
    )


def floors(found: dict[str, Any]) -> dict[str, float]:
    """The least seconds of a step: with each kind on its roof, and with the products alone, all else fused away."""
    of_kind = {kind: _on_its_roof(row, found) for kind, row in found["kinds"].items()}
    return {"every kind on its roof": sum(of_kind.values()), "products alone": of_kind["matrix products"]}


def _on_its_roof(row: dict[str, float], found: dict[str, Any]) -> float:
    """The least seconds of so many operations and bytes."""
    return max(row["flops"] / found["flops_per_s"], row["bytes"] / found["bytes_per_s"])


def _by_time(found: dict[str, Any]) -> list[tuple[str, dict[str, float], float]]:
    """Every kind with its numbers and its share of the time, the longest first."""
    total = sum(row["seconds"] for row in found["kinds"].values())
    ordered = sorted(found["kinds"].items(), key=lambda pair: -pair[1]["seconds"])
    return [(kind, row, row["seconds"] / total) for kind, row in ordered]


def page(found: dict[str, Any]) -> str:
    """What was measured as tables in Markdown."""
    rows = []
    for kind, row, share in _by_time(found):
        rows.append([
            kind, f"{share:.0%}", f"{row['flops'] / 1e9:.2f}", f"{row['bytes'] / 1e9:.2f}",
            f"{row['flops'] / row['bytes']:.2g}", f"{row['flops'] / row['seconds'] / 1e9:.1f}",
            f"{row['bytes'] / row['seconds'] / 1e9:.1f}", f"{_on_its_roof(row, found) / row['seconds']:.0%}",
        ])  # fmt: skip
    head = ["kind", "share of the time", "10⁹ operations", "GB", "operations a byte", "GFLOP/s", "GB/s", "of its roof"]
    words = (
        f"A step takes {1000 * found['step_s']:.0f} ms. Roofs: {found['flops_per_s'] / 1e9:.0f} GFLOP/s; "
        f"{found['bytes_per_s'] / 1e9:.0f} GB/s for arrays of {found['array_bytes'] / 1e6:.0f} MB, the largest of the "
        f"step, and {found['bytes_per_s_large'] / 1e9:.0f} GB/s beyond the caches."
    )
    limits = [[what, f"{1000 * s:.0f}", f"{s / found['step_s']:.0%}"] for what, s in floors(found).items()]
    return "\n\n".join([
        words, table(head, rows), table(["floor of a step", "ms", "of the step as it is"], limits),
        "![Where the operations of a training step stand below the roofs of the machine](roofline.png)",
    ])  # fmt: skip


def figure(found: dict[str, Any]) -> Any:
    """The roofs, and each kind of operation as a disc whose area is its share of the time."""
    import numpy as np
    import plotly.graph_objects as go

    from loopprobe.show.figures.style import finish

    x = np.geomspace(0.03, 60, 200)
    made = go.Figure()
    for name, width in (("bytes_per_s", 2), ("bytes_per_s_large", 1)):
        y = np.minimum(x * found[name], found["flops_per_s"]) / 1e9
        size = found["array_bytes"] if name == "bytes_per_s" else LARGE
        label = f"roof, arrays of {size / 1e6:.0f} MB"
        made.add_scatter(x=x, y=y, mode="lines", name=label, line={"width": width, "color": "#888"})
    for kind, row, share in _by_time(found):
        made.add_scatter(
            x=[row["flops"] / row["bytes"]], y=[row["flops"] / row["seconds"] / 1e9], mode="markers",
            marker={"size": max(6, 90 * share**0.5)}, name=f"{kind}, {share:.0%}",
        )  # fmt: skip
    made.update_xaxes(type="log", title="operations a byte")
    made.update_yaxes(type="log", title="GFLOP/s")
    made.update_layout(legend_itemsizing="constant")
    threads = found["machine"]["threads"]
    return finish(made, f"A training step below the roofs of {threads} threads: share of the time by kind of operation")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", action="store_true", help="draw docs/roofline.png too (needs loopprobe[png])")
    args = parser.parse_args()
    found = measure()
    print(page(found))
    write(__file__, found)
    if args.png:
        from loopprobe.show.figures.pages import write_png

        write_png(figure(found), Path(__file__).resolve().parent.parent / "docs" / "roofline.png")


if __name__ == "__main__":
    main()
