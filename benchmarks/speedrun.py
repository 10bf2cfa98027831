"""The speed run: seconds of training to errors of 0.1, 0.02 and 0.01 on held-out prompts, by recipe.

    python benchmarks/speedrun.py                                  # the fast recipe, three seeds
    python benchmarks/speedrun.py --recipe default --recipe fast   # side by side, in turn
    python benchmarks/speedrun.py --set train.steps=1000 --set model.n_layers=4

The model is the default one (4 heads, d_model 64, 1 layer, b 20, T 10, 10 dimensions, 31 points). Seconds are those of
training and of making its prompts; those of evaluation (256 held-out prompts every 25 steps) do not count. What was
tried, and why, is in SPEEDRUN.md. Adds its rows to speedrun.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from train_step import Contestant, race

from loopprobe.provenance import provenance
from loopprobe.settings import load_config
from loopprobe.train import pick_device

TARGETS = (0.1, 0.02, 0.01)
GROWING = ["train.dims={kind='linear',start=3,over=0.4}", "train.points={kind='linear',start=10,over=0.4}"]
RECIPES: dict[str, tuple[str | None, list[str]]] = {  # a preset, and what is changed in it
    "default": (None, []),
    "fast": ("fast", []),
    "fast, mean squared error": ("fast", ["train.loss=mse"]),
    "fast, batch 64": ("fast", ["train.batch_size=64"]),
    "fast, no hold": ("fast", GROWING),
}


def contestant(recipe: str, seed: int, also: list[str], device: torch.device) -> Contestant:
    """A model of a recipe and a seed, before its training; ``also`` changes any key besides."""
    preset, changed = RECIPES[recipe]
    overrides = [*changed, f"train.seed={seed}", *also]
    return Contestant(f"{recipe}, seed {seed}", load_config(preset=preset, overrides=overrides), device, plain=False)


def main() -> None:
    """Race, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--recipe", action="append", choices=list(RECIPES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, for all recipes of this run")
    parser.add_argument("--budget", type=float, default=900, help="seconds of training a model")
    parser.add_argument("--to-the-end", action="store_true", help="train all steps, past the targets")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    device = pick_device(args.device)
    recipes = args.recipe or ["fast"]
    seeds = [int(seed) for seed in args.seeds.split(",")]
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for seed in seeds:
        contestants = [contestant(recipe, seed, args.set, device) for recipe in recipes]
        race(contestants, (*TARGETS, *((0.0,) if args.to_the_end else ())), args.budget)
        for recipe, c in zip(recipes, contestants, strict=True):
            row = {"reached_after_s": {str(t): c.reached.get(t) for t in TARGETS}, "steps": c.steps,
                   "seconds": c.seconds, "error": c.curve[-1][2], "curve": c.curve,
                   "machine": provenance(device, torch.float32)}  # fmt: skip
            found.setdefault(", ".join([recipe, *args.set]), {})[str(seed)] = row
    for recipe, rows in found.items():
        for target in TARGETS:
            times = [row["reached_after_s"][str(target)] for row in rows.values()]
            reached = [time for time in times if time is not None]
            middle = f"{statistics.median(reached):.0f} s" if len(reached) == len(times) else "not by all"
            print(f"{recipe}: {target} after {middle} ({', '.join(str(time) for time in times)})")
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
