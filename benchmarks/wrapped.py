"""A wrapped module against the bare one: Dory, two looped layers of width 256, eight loops, 8 prompts of 64 tokens.

    python benchmarks/wrapped.py            # about two minutes on a free core

In turn, on one thread, each way twice a repeat, in both orders: the bare module; wrapped, where nobody listens; with
``resid_post`` cached; with everything cached, attention included, whose patterns the bare module never writes down.
Times are those of the processor, so that others on the machine count little; the ratio is the median over repeats of
the ratio to the bare module beside it. Answers are those after the last loop. Each row of memory is a process of its
own: peak is what it grew by beyond a warmed-up model, the last column is the activations themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from cache import memory
from common import in_a_process, table, write
from torch import Tensor

from loopprobe.model.cache import LoopCache
from loopprobe.support.provenance import provenance
from loopprobe.wrapped.model import WrappedModel
from loopprobe.wrapped.wrap import wrap

N_LOOPS, BATCH, N_TOKENS = 8, 8, 64
NAMES: dict[str, Any] = {"wrapped, idle": (), "wrapped, resid_post cached": "resid_post", "wrapped, all cached": None}


def make() -> tuple[WrappedModel, Tensor]:
    """The model, wrapped, and prompts."""
    from transformers import DoryConfig, DoryForCausalLM

    torch.manual_seed(0)
    config = DoryConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=1024, num_attention_heads=4, head_dim=64,
        num_key_value_heads=4, num_hidden_layers=4, n_input_layers=1, n_recurrent_layers=2, n_output_layers=1,
        n_recurrent_loops=N_LOOPS, max_position_embeddings=N_TOKENS, pad_token_id=0,
    )  # fmt: skip
    model = wrap(DoryForCausalLM(config).eval())
    return model, torch.randint(1, 1000, (BATCH, N_TOKENS))


def run(model: WrappedModel, tokens: Tensor, names: Any) -> LoopCache | None:
    """A run for the answers after the last loop, with what is named kept."""
    if names == ():
        model(tokens, keep_loops=1)
        return None
    cache = LoopCache.choose(model, N_LOOPS, names, None, None, None, n_pos=N_TOKENS)
    with model.hooks([(cache.holds, cache.record)]):
        model(tokens, keep_loops=1)
    return cache


def seconds(repeats: int) -> dict[str, Any]:
    """Milliseconds of every way, and the ratios to the bare module."""
    model, tokens = make()
    ways: dict[str, Callable[[], Any]] = {"bare": lambda: model.module(tokens, use_cache=False)}
    ways |= {label: lambda names=names: run(model, tokens, names) for label, names in NAMES.items()}
    times: dict[str, list[float]] = {label: [] for label in ways}
    with torch.no_grad():
        for i in range(repeats + 2):
            once = dict.fromkeys(ways, 0.0)
            for label in [*ways, *reversed(ways)]:
                started = time.process_time()
                kept = ways[label]()
                once[label] += (time.process_time() - started) / 2
                del kept
            if i >= 2:  # after warm-up
                for label, value in once.items():
                    times[label].append(value)
    return {
        label: {
            "median_ms": 1e3 * statistics.median(values),
            "ratio_to_bare": statistics.median(a / b for a, b in zip(values, times["bare"], strict=True)),
        }
        for label, values in times.items()
    }


def one_row(label: str) -> dict[str, float]:
    """Memory of one way, in this process."""
    model, tokens = make()
    ways = {"bare": lambda: model.module(tokens, use_cache=False)}
    with torch.no_grad():
        run(model, tokens, ()), ways["bare"]()
        before = memory("VmHWM")
        kept = ways["bare"]() if label == "bare" else run(model, tokens, NAMES[label])
    size = sum(kept[name].nbytes for name in kept) if isinstance(kept, LoopCache) else 0
    return {"peak_MB": (memory("VmHWM") - before) / 1e6, "kept_MB": size / 1e6}


def page(found: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    digits = {"median_ms": 0, "ratio_to_bare": 3, "peak_MB": 1, "kept_MB": 1}
    rows = [
        [label, *(f"{row[key]:.{n_digits}f}" for key, n_digits in digits.items())]
        for label, row in found["rows"].items()
    ]
    return table(["a run of 8 loops", "median ms", "ratio to bare", "peak MB", "MB of activations"], rows)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=["bare", *NAMES], help="measure the memory of one row and print it as JSON")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.row:
        print(json.dumps(one_row(args.row)))
        return
    rows = seconds(args.repeats)
    for label, row in rows.items():
        row |= in_a_process(__file__, "--row", label, MALLOC_TRIM_THRESHOLD_=str(2**17))
    found = {"machine": provenance("cpu", torch.float32), "rows": rows}
    print(page(found))
    write(__file__, found)


if __name__ == "__main__":
    main()
