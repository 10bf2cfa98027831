"""Sessions: what a call costs after a run of thousands of loops, against the same call in a fresh session.

    python benchmarks/session.py          # about a minute

The default checkpoint and two prompts. Each call is timed before a run of 2,000 loops with activations cached and a
mask attached, and after it, in turns of a batch of calls; what is compared is the smallest of the turns. The goal is
1.2: a call costs what its own loops cost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from common import out_path, table, write

from loopprobe import edited, load_checkpoint, masked
from loopprobe.model.interventions import zero
from loopprobe.support.provenance import provenance

LONG, TURNS, CALLS = 2000, 15, 10
GOAL = 1.2


def calls(model: Any, prompts: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""

    def in_mask() -> None:
        with masked(model, "first", 10):
            pass

    def in_edit() -> None:
        with edited(model, "mlp_out", zero):
            pass

    return {
        "run_with_cache of 5 loops": lambda: model.run_with_cache(*prompts, 5, names="resid_post"),
        "entering and leaving masked": in_mask,
        "entering and leaving edited": in_edit,
        "reset_hooks": model.reset_hooks,
        "a run of 5 loops": lambda: model(*prompts, 5),
    }


def smallest(call: Callable[[], Any]) -> float:
    """Milliseconds of one call, in the fastest of the turns."""
    turns = []
    for _ in range(TURNS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        turns.append((time.perf_counter() - started) / CALLS)
    return 1e3 * min(turns)


def measure() -> dict[str, Any]:
    """Milliseconds of every call before and after the long run."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint("lr-b20-T10")
    model, prompts = checkpoint.model, checkpoint.held_out(2)
    timed = calls(model, prompts)
    for call in timed.values():
        call()
    with torch.no_grad():
        before = {name: smallest(call) for name, call in timed.items()}
        model.run_with_cache(*prompts, LONG, names="resid_post")
        with masked(model, "first", 10):
            model(*prompts, LONG)
        after = {name: smallest(call) for name, call in timed.items()}
    rows = {name: {"before_ms": before[name], "after_ms": after[name]} for name in timed}
    return {"machine": provenance("cpu", torch.float32), "loops": LONG, "rows": rows}


def page(found: dict[str, Any]) -> str:
    """The table of what was measured."""
    rows = [
        (name, f"{row['before_ms']:.3g}", f"{row['after_ms']:.3g}", f"{row['after_ms'] / row['before_ms']:.2f}")
        for name, row in found["rows"].items()
    ]
    return table(("call", "ms before", f"ms after {found['loops']:,} loops", "ratio"), rows)


def main() -> None:
    """Measure, show and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = measure()
    print(page(found))
    write(__file__, found)
    assert json.loads(out_path(__file__).read_text(encoding="utf-8")) == found


if __name__ == "__main__":
    main()
