"""The speed run: seconds of training to errors of 0.1, 0.02 and 0.01 on held-out prompts, by recipe.

    python benchmarks/speedrun.py                                  # the fast recipe, three seeds
    python benchmarks/speedrun.py --recipe default --recipe fast   # side by side, in turn
    python benchmarks/speedrun.py --set train.steps=1000 --set model.n_layers=4

The model is the default one (4 heads, d_model 64, 1 layer, b 20, T 10, 10 dimensions, 31 points). Seconds are those of
training and of making its prompts; those of evaluation (256 held-out prompts every 50 steps) do not count. Cost is in
steps of the default recipe with all dimensions, points and loops, counted from the operations of the matrix products.
The error is the better of those of the weights and of their exponential average. What was tried, and why, is in
SPEEDRUN.md. Adds its rows to speedrun.json beside itself; a training ends where an error of 0.01 is reached, or at its
last step with --to-the-end. The rows of the default recipe, the fast one and the sprint by steps are of three that took
turns to the end; every other one is of a run of that recipe alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from common import out_path, table, write
from train_step import Contestant, race

from loopprobe.config.schema import Config
from loopprobe.config.sources import load_config
from loopprobe.store.evaluate import query_error
from loopprobe.support.device import pick_device
from loopprobe.support.provenance import provenance
from loopprobe.tasks import Prompts

TARGETS = (0.1, 0.02, 0.01)
SHOWN = ("default", "fast", "sprint")  # on every page, measured or not
DECAY = 0.98  # of the averaged weights, a step
GROWING = ["train.dims={kind='linear',start=3,over=0.4}", "train.points={kind='linear',start=10,over=0.4}"]
BY_STEPS = [
    "train.steps=1400", "train.muon_lr=0.014", "train.adam_lr=0.005",
    "train.dims={kind='linear',start=3,hold=140,over=0.36}", "train.points={kind='linear',start=10,hold=140,over=0.36}",
]  # fmt: skip
RECIPES: dict[str, tuple[str | None, list[str]]] = {  # a preset, and what is changed in it
    "default": (None, []),
    "fast": ("fast", []),
    "sprint": ("sprint", []),
    "sprint by steps": ("fast", BY_STEPS),
    "fast, mean squared error": ("fast", ["train.loss=mse"]),
    "fast, batch 64": ("fast", ["train.batch_size=64"]),
    "fast, no hold": ("fast", GROWING),
}


class Averaged(Contestant):
    """A contestant whose error is the better of those of its weights and of their average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.average = copy.deepcopy(self.model)
        self.means, self.weights = list(self.average.parameters()), list(self.model.parameters())
        self.operations = [0.0]  # of the first steps

    def step(self, i: int, prompts: Prompts) -> None:
        self.operations.append(self.operations[-1] + operations(self.cfg, self.sizes(i)))
        super().step(i, prompts)
        with torch.no_grad():
            torch._foreach_lerp_(self.means, self.weights, 1 - DECAY)

    def error(self, prompts: Prompts) -> float:
        n_loops = self.cfg.model.n_loops
        return min(query_error(model, prompts, n_loops)[-1].mean().item() for model in (self.model, self.average))

    def cost(self, steps: int) -> float:
        """Of its first steps, in steps of the default recipe at its full size."""
        unit = load_config()
        return self.operations[steps] / operations(unit, unit.train.sizes(unit.train.steps - 1))


def operations(cfg: Config, sizes: Mapping[str, int]) -> float:
    """Of a step of some sizes: the matrix products of every loop, three times as many where it carries gradient."""
    m, t = cfg.model, cfg.train
    loops, tokens = sizes["loops"], 2 * sizes["points"]
    per_token = m.n_layers * (24 * m.d_model**2 + 4 * tokens * m.d_model)
    return t.batch_size * tokens * per_token * (loops + 2 * min(t.loop_window, loops))


def contestant(recipe: str, seed: int, also: list[str], device: torch.device) -> Averaged:
    """A model of a recipe and a seed, before its training; ``also`` changes any key besides."""
    preset, changed = RECIPES[recipe]
    overrides = [*changed, f"train.seed={seed}", *also]
    return Averaged(f"{recipe}, seed {seed}", load_config(preset=preset, overrides=overrides), device, plain=False)


def page(found: dict[str, Any]) -> str:
    """Medians over the seeds as a table in Markdown, every seed in brackets."""
    reached = (*(f"seconds to {target:g}" for target in TARGETS), *(f"cost to {target:g}" for target in TARGETS))
    head = ["recipe", *reached, "ends with, at cost"]
    rows = []
    for recipe in dict.fromkeys([*SHOWN, *found]):
        line, seeds = [recipe], found.get(recipe)
        if seeds is None:
            rows.append([recipe, *["not measured"] * (len(head) - 1)])
            continue
        for key in ("reached_after_s", "reached_at_cost"):
            line += [_median([row[key][str(target)] for row in seeds.values()]) for target in TARGETS]
        ends = ", ".join(f"{row['error']:.2g}" for row in seeds.values())
        rows.append([*line, f"{ends} at {statistics.median(row['cost'] for row in seeds.values()):.0f}"])
    return table(head, rows)


def _median(values: list[float | None]) -> str:
    reached = [value for value in values if value is not None]
    middle = f"{statistics.median(reached):.3g}" if len(reached) == len(values) else "not by all"
    return f"{middle} ({', '.join('–' if value is None else f'{value:.3g}' for value in values)})"


def main() -> None:
    """Race, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--recipe", action="append", choices=list(RECIPES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, for all recipes of this run")
    parser.add_argument("--budget", type=float, default=900, help="seconds of training a model")
    parser.add_argument("--to-the-end", action="store_true", help="train all steps, past the targets")
    args = parser.parse_args()
    device = pick_device(args.device)
    recipes = args.recipe or ["fast"]
    seeds = [int(seed) for seed in args.seeds.split(",")]
    out = out_path(__file__, device)
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for seed in seeds:
        contestants = [contestant(recipe, seed, args.set, device) for recipe in recipes]
        race(contestants, (*TARGETS, *((0.0,) if args.to_the_end else ())), args.budget, slice_=50)
        for recipe, c in zip(recipes, contestants, strict=True):
            at = {t: next((steps for steps, _, error in c.curve if error <= t), None) for t in TARGETS}
            row = {"reached_after_s": {str(t): c.reached.get(t) for t in TARGETS},
                   "reached_at_cost": {str(t): steps and c.cost(steps) for t, steps in at.items()},
                   "steps": c.steps, "cost": c.cost(c.steps), "seconds": c.seconds,
                   "error": c.curve[-1][2], "curve": c.curve, "machine": provenance(device, torch.float32)}  # fmt: skip
            found.setdefault(", ".join([recipe, *args.set]), {})[str(seed)] = row
    print(page(found))
    write(__file__, found, device)


if __name__ == "__main__":
    main()
