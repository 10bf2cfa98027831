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

from loopprobe.config.schema import Config
from loopprobe.config.sources import load_config
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes import converge, decode, extrapolate, lens, mask, patch
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
        if not func.is_view and name not in FREE:
            self.kernels += 1
        if name == "aten::_scaled_dot_product_flash_attention_for_cpu":
            self.flops += sdpa_flop_count(*(t.shape for t in args[:3]))
        elif name == "aten::_scaled_dot_product_flash_attention_for_cpu_backward":
            self.flops += sdpa_backward_flop_count(*(t.shape for t in args[:4]))
        elif func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


FREE = {"aten::_unsafe_view", "aten::detach", "aten::empty", "aten::alias"}


def counted(work: Callable[[], Any]) -> dict[str, int]:
    """Operations and kernels of one piece of work."""
    with Counter() as counter:
        work()
    return {"flops": counter.flops, "kernels": counter.kernels}


def counts() -> dict[str, dict[str, int]]:
    """All that is counted, on models before their training and on 8 prompts: the default model, and one of tokens.

    Torch counts in the thread that asks alone, so that batches run there too, one after the other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _of_vectors() | _of_tokens()
    finally:
        torch.set_num_threads(threads)


def _untrained(cfg: Config) -> tuple[Checkpoint, Any, Callable[[], None]]:
    """A model before its training, its prompts, and a training step on them."""
    model = LoopedTransformer(cfg.model, torch.Generator().manual_seed(0))
    checkpoint = Checkpoint(cfg, model, name="untrained")
    prompts, optimizers = checkpoint.held_out(N_PROMPTS), make_optimizers(model, cfg.train)

    def step() -> None:
        replay, loops = Replay(torch.device("cpu")), checkpoint.loops_of(prompts)
        train_step(model, optimizers, prompts, cfg.train.steps - 1, cfg.train, replay, loops)

    step()  # makes the state of the optimizers
    return checkpoint, prompts, step


def _of_vectors() -> dict[str, dict[str, int]]:
    checkpoint, prompts, step = _untrained(load_config())
    model = checkpoint.model

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


def _of_tokens() -> dict[str, dict[str, int]]:
    """Composition in S5: 12 moves, 12 loops."""
    checkpoint, prompts, step = _untrained(load_config(preset="s5"))
    model = checkpoint.model
    found = {
        "training step": counted(step),
        "forward, 12 loops": counted(lambda: torch.no_grad()(model)(*prompts.inputs, 12, read_at=prompts.read_at)),
        "mask, every n, 5 loops": counted(
            lambda: mask.run(checkpoint, prompts, mask.MaskConfig(n=tuple(range(14)), loops=5))
        ),
        "lens": counted(lambda: lens.run(checkpoint, prompts, lens.LensConfig(train_prompts=N_PROMPTS))),
        "patch, every token, 2 loops": counted(lambda: patch.run(checkpoint, prompts, patch.PatchConfig(loops=2))),
        "decode": counted(lambda: decode.run(checkpoint, prompts, decode.DecodeConfig(train_prompts=N_PROMPTS))),
        "extrapolate, 4 lengths, 24 loops": counted(
            lambda: extrapolate.run(
                checkpoint, prompts, extrapolate.ExtrapolateConfig(lengths=(6, 12, 18, 24), loops=24)
            )
        ),
    }
    return {f"S5: {name}": row for name, row in found.items()}


def page(found: dict[str, Any]) -> str:
    """The counts as a table in Markdown."""
    rows = []
    for name, row in found["counts"].items():
        one = "S5: forward, 12 loops" if name.startswith("S5: ") else "forward, 20 loops"
        ratio = f"{row['flops'] / found['counts'][one]['flops']:.2f}" if "flops" in row else "–"
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
