"""What does not depend on the machine: floating-point operations, kernels launched and bytes kept, by task.

    python benchmarks/counts.py

writes counts.json beside itself; CI holds the code against it (tests/test_benchmarks.py), so that no change makes a
training step or a probe dearer unnoticed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import table, write
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from loopprobe.config.sources import load_config
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes import converge, lens, mask, patch
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.training.replay import Replay
from loopprobe.training.steps import make_optimizers, train_step

N_PROMPTS = 8


class Counter(TorchDispatchMode):
    """Counts the floating-point operations (torch's own formulas) and kernels that run inside it; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not func.is_view and name not in _FREE:
            self.kernels += 1
        if name == "aten::_scaled_dot_product_flash_attention_for_cpu":
            self.flops += sdpa_flop_count(*(t.shape for t in args[:3]))
        elif name == "aten::_scaled_dot_product_flash_attention_for_cpu_backward":
            self.flops += sdpa_backward_flop_count(*(t.shape for t in args[:4]))
        elif func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


_FREE = {"aten::_unsafe_view", "aten::detach", "aten::empty", "aten::alias"}


def counted(work: Callable[[], Any]) -> dict[str, int]:
    """Operations and kernels of one piece of work."""
    with Counter() as counter:
        work()
    return {"flops": counter.flops, "kernels": counter.kernels}


def counts() -> dict[str, dict[str, int]]:
    """All that is counted, on the default model before its training and on 8 prompts."""
    cfg = load_config()
    generator = torch.Generator().manual_seed(0)
    model = LoopedTransformer(cfg.model, generator)
    checkpoint = Checkpoint(cfg, model, name="untrained")
    prompts = checkpoint.held_out(N_PROMPTS)
    assert cfg.train is not None
    train, optimizers = cfg.train, make_optimizers(model, cfg.train)

    def step() -> None:
        train_step(model, optimizers, prompts, train.steps - 1, train, Replay(torch.device("cpu")))

    step()  # makes the state of the optimizers

    def forward(n_loops: int) -> Callable[[], Any]:
        return lambda: torch.no_grad()(model)(*prompts, n_loops)

    found = {
        "training step": counted(step),
        "forward, 20 loops": counted(forward(20)),
        "forward, 40 loops": counted(forward(40)),
        "converge, 40 loops": counted(
            lambda: converge.run(checkpoint, prompts, converge.ConvergeConfig(loops=40, states=0))
        ),
        "mask, every n, 5 loops": counted(
            lambda: mask.run(checkpoint, prompts, mask.MaskConfig(n=tuple(range(32)), loops=5))
        ),
        "lens": counted(lambda: lens.run(checkpoint, prompts, lens.LensConfig(train_prompts=N_PROMPTS))),
        "patch, every token, 2 loops": counted(lambda: patch.run(checkpoint, prompts, patch.PatchConfig(loops=2))),
    }
    with torch.no_grad():
        _, cache = model.run_with_cache(*prompts, 20, names=["resid_post", "pattern"])
    found["cache, resid_post and pattern, 20 loops"] = {"bytes": sum(cache[name].nbytes for name in cache)}
    return found


def page(found: dict[str, Any]) -> str:
    """The counts as a table in Markdown."""
    forward = found["counts"]["forward, 20 loops"]["flops"]
    rows = []
    for name, row in found["counts"].items():
        ratio = f"{row['flops'] / forward:.2f}" if "flops" in row else "–"
        rows.append(
            [name, ratio, *(f"{row[unit]:,}" if unit in row else "–" for unit in ("flops", "kernels", "bytes"))]
        )
    return table(["what", "forward passes", "operations", "kernels", "bytes"], rows)


def main() -> None:
    """Count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    found = {"torch": torch.__version__.split("+")[0], "counts": counts()}
    print(page(found))
    write(__file__, found)


if __name__ == "__main__":
    main()
