"""Caching: run_with_cache against caching once a loop, and a cache streamed to netCDF against a numpy memory map.

    python benchmarks/cache.py            # about 2 minutes on two cores

Part 1 keeps activations of 100 loops of the default checkpoint (16 prompts), by ``run_with_cache`` and by the obvious
way with stock TransformerLens hooks: one ActivationCache-style dictionary a loop, in a list. Each row is a process of
its own; peak is what its memory grew by beyond a warmed-up model, which may reuse what the warm-up
freed, so that it can be less than the activations that are held. Part 2 writes
resid_post and pattern of 500 loops (64 prompts) to disk, the same computation once with ``stream_cache`` and once with
an open numpy memory map, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_a_process, table, write

from loopprobe import load_checkpoint
from loopprobe.model.hook_points import short_name, split_name
from loopprobe.model.looped import LoopedTransformer
from loopprobe.model.stream import CacheConfig, stream_cache
from loopprobe.support.provenance import provenance
from loopprobe.tasks import Prompts

SOME = ("resid_post", "pattern")


def ours(model: LoopedTransformer, prompts: Prompts, n_loops: int, names: Any) -> Any:
    return model.run_with_cache(prompts.xs, prompts.ys, n_loops, names=names)[1]


def once_a_loop(model: LoopedTransformer, prompts: Prompts, n_loops: int, names: Any) -> Any:
    """What one writes without a loop axis: the stock caching hooks of TransformerLens around every iteration."""
    wanted = lambda name: name.startswith("loops.0.") and (names is None or short_name(name) in names)  # noqa: E731
    caches = []
    with torch.no_grad():
        e = model.embed(prompts.xs, prompts.ys)
        z = model.initial_state(e)
        for _ in range(n_loops):
            cache, hooks, _ = model.get_caching_hooks(wanted)
            with model.hooks(fwd_hooks=hooks):
                z = model.step(z, e, 0)
                model.predict(z)
            caches.append(cache)
    return caches


def nothing(model: LoopedTransformer, prompts: Prompts, n_loops: int, names: Any) -> Any:
    with torch.no_grad():
        return model(prompts.xs, prompts.ys, n_loops)


ROWS: dict[str, tuple[Callable[..., Any], Any]] = {
    "no cache": (nothing, None),
    "run_with_cache, resid_post and pattern": (ours, SOME),
    "once a loop, resid_post and pattern": (once_a_loop, SOME),
    "run_with_cache, everything": (ours, None),
    "once a loop, everything": (once_a_loop, None),
}


def memory(field: str) -> int:
    """Of this process, in bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def one_row(name: str, n_loops: int, n_prompts: int) -> dict[str, float]:
    """Seconds and memory of one way of caching, in this process."""
    way, names = ROWS[name]
    checkpoint = load_checkpoint("lr-b20-T10")
    model, prompts = checkpoint.model, checkpoint.held_out(n_prompts)
    way(model, prompts, 2, names)
    before = memory("VmHWM")
    started = time.perf_counter()
    kept = way(model, prompts, n_loops, names)
    seconds = time.perf_counter() - started
    tensors = kept if isinstance(kept, list) else []
    size = sum(t.numel() * t.element_size() for cache in tensors for t in cache.values())
    if way is ours:
        size = sum(kept[name].numel() * kept[name].element_size() for name in kept)
    return {"seconds": seconds, "peak_MB": (memory("VmHWM") - before) / 1e6, "kept_MB": size / 1e6}


def memory_map(model: LoopedTransformer, prompts: Prompts, n_loops: int, folder: Path) -> None:
    """The same computation, each activation assigned to its place in an open memory map."""
    n_prompts, n_points, _ = prompts.xs.shape
    shapes = {
        "resid_post": (n_prompts, 2 * n_points, model.cfg.d_model),
        "pattern": (n_prompts, model.cfg.n_heads, 2 * n_points, 2 * n_points),
    }
    maps = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype="f4", shape=(n_loops, *shape))
        for name, shape in shapes.items()
    }

    def write(x: torch.Tensor, hook: Any) -> None:
        maps[short_name(hook.name)][split_name(hook.name)[0]] = x.numpy()

    with torch.no_grad(), model.hooks(fwd_hooks=[(lambda name: short_name(name) in maps, write)]):
        model(prompts.xs, prompts.ys, n_loops, keep_loops=1)
    for array in maps.values():
        array.flush()


def stream_against_map(n_loops: int, n_prompts: int, repeats: int) -> dict[str, Any]:
    """Seconds of both ways of writing, in turn."""
    checkpoint = load_checkpoint("lr-b20-T10")
    model, prompts = checkpoint.model, checkpoint.held_out(n_prompts)
    config = CacheConfig(loops=tuple(range(n_loops)), names=SOME)
    times: dict[str, list[float]] = {"stream_cache": [], "memory map": [], "no writing": []}
    for _ in range(repeats):
        for name, seconds in times.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                if name == "stream_cache":
                    stream_cache(model, prompts, Path(folder) / "cache.nc", config)
                elif name == "memory map":
                    memory_map(model, prompts, n_loops, Path(folder))
                else:
                    nothing(model, prompts, n_loops, None)
                seconds.append(time.perf_counter() - started)
    speed = statistics.median(b / a for a, b in zip(times["stream_cache"], times["memory map"], strict=True))
    written = n_loops * n_prompts * (62 * 64 + 4 * 62 * 62) * 4
    return {"MB": written / 1e6, "seconds": times, "speed_of_memory_map": speed}


def page(found: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    rows = [
        [name, f"{row['seconds']:.2f}", f"{row['peak_MB']:.0f}", f"{row['kept_MB']:.0f}"]
        for name, row in found["rows"].items()
    ]
    stream = found["stream"]
    return (
        table(["activations of 100 loops, 16 prompts", "seconds", "peak MB", "MB of activations"], rows)
        + f"\n\nStreamed to disk ({stream['MB'] / 1000:.1f} GB), the computation runs at "
        f"{stream['speed_of_memory_map']:.2f} of its speed with an open numpy memory map."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, help="measure one row in this process and print it as JSON")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(one_row(args.row, n_loops=100, n_prompts=16)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    for _ in range(args.repeats):
        for name in ROWS:
            found[name].append(in_a_process(__file__, "--row", name))
    rows = {name: {key: statistics.median(row[key] for row in runs) for key in runs[0]} for name, runs in found.items()}
    for name, row in rows.items():
        print(f"{name}: {row['seconds']:.2f} s, peak {row['peak_MB']:.0f} MB, kept {row['kept_MB']:.0f} MB")
    streamed = stream_against_map(n_loops=500, n_prompts=64, repeats=args.repeats)
    print(f"streaming at {streamed['speed_of_memory_map']:.2f} of the speed of a memory map ({streamed['MB']:.0f} MB)")
    machine = provenance("cpu", torch.float32)
    write(__file__, {"machine": machine, "rows": rows, "stream": streamed})


if __name__ == "__main__":
    main()
