"""Goals: what the project wants to be as fast, or as sure, as; each is read from what a benchmark has measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import out_path, table
from report import WORKERS

FOLDER = Path(__file__).resolve().parent
OURS = "loopprobe, default recipe"


@dataclass(frozen=True)
class Goal:
    """A number that a benchmark measures, and the range that it shall be in.

    Attributes:
        what: the number in words.
        benchmark, device: where it is measured.
        read: from what was measured to the number; several, where all shall be in the range.
        low, high: the range.
        unit: how numbers are written.
    """

    what: str
    benchmark: str
    read: Callable[[dict[str, Any]], list[float]]
    low: float = 0.0
    high: float = float("inf")
    device: str = "cpu"
    unit: str = "{:.2f}"

    @property
    def words(self) -> str:
        """The range in words."""
        low, high = (self.unit.format(end) for end in (self.low, self.high))
        return (
            f"at most {high}"
            if not self.low
            else f"at least {low}"
            if self.high == float("inf")
            else f"{low} to {high}"
        )

    def row(self) -> tuple[str, str, str, str]:
        """The number, the goal, what was measured, and whether that is as it shall be."""
        path = out_path(str(FOLDER / f"{self.benchmark}.py"), self.device)
        try:
            found = self.read(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, KeyError):
            return self.what, self.words, "not measured", "–"
        written = (self.unit.format(end) if end < float("inf") else "not reached" for end in (min(found), max(found)))
        ends = list(dict.fromkeys(written))
        is_met = self.low <= min(found) and max(found) <= self.high
        return self.what, self.words, " to ".join(ends), "met" if is_met else "missed"


def slowest(recipe: str, error: str) -> Callable[[dict[str, Any]], list[float]]:
    """Seconds to an error, of the slowest seed."""
    return lambda found: [max(row["reached_after_s"][error] or float("inf") for row in found[recipe].values())]


def _claims(found: dict[str, Any]) -> list[float]:
    rows = [row for row in found["claims"] if (row["seeds"], row["prompts"]) == (5, 1280)]
    return [row[name] for row in rows for name in ("each", "coverage", "mean")]


def _minutes(form: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda found: [sum(row["seconds"] for row in found[form]) / 60 / WORKERS]


def _command(name: str, part: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda found: [statistics.median(found["rows"][name][part])]


SECONDS, MINUTES, PERCENT, STEPS = "{:.1f} s", "{:.0f} min", "{:.1%}", "{:.1f} steps of one"
MASK = "loopprobe mask --mode first --n"
GOALS = (
    Goal(f"`{MASK} 10`", "commands", _command(f"{MASK} 10", "seconds"), high=12, unit=SECONDS),
    Goal("its first sign of life", "commands", _command(f"{MASK} 10", "first_s"), high=4, unit=SECONDS),
    Goal(f"`{MASK} 0:31`", "commands", _command(f"{MASK} 0:31", "seconds"), high=60, unit=SECONDS),
    Goal("answers of `loopprobe report --quick`", "report", _minutes("quick"), high=4, unit=MINUTES),
    Goal("answers of `loopprobe report`", "report", _minutes("full"), high=120, unit=MINUTES),
    Goal("a training step, against a plain eager one", "train_step", lambda f: [f["step"][OURS]["ratio_to_plain"]],
         high=0.6),
    Goal("its share of the rate of matrix products", "train_step", lambda f: [f["step"][OURS]["share_of_matmul_rate"]],
         low=0.5, unit="{:.0%}"),
    Goal("a training step on a GPU, against a plain eager one", "train_step",
         lambda f: [f["step"][OURS]["ratio_to_plain"]], high=0.5, device="cuda"),
    Goal("a step of 16 models as a stack on a GPU", "stack", lambda f: [f["rows"]["16"]["stack"]], high=3,
         device="cuda", unit=STEPS),
    Goal("a step of 128 models as a stack on a GPU", "stack", lambda f: [f["rows"]["128"]["stack"]], high=16,
         device="cuda", unit=STEPS),
    Goal("sprint to an error of 0.02, slowest seed", "speedrun", slowest("sprint", "0.02"), high=60, unit=SECONDS),
    Goal("the same on a GPU", "speedrun", slowest("sprint", "0.02"), high=3, device="cuda", unit=SECONDS),
    Goal("a call after 2,000 loops, against one before", "session",
         lambda f: [row["after_ms"] / row["before_ms"] for row in f["rows"].values()], high=1.2),
    Goal("driver time of a sweep of 1,000 models", "sweep", lambda f: [sum(f["rows"]["1000"].values())], high=10,
         unit=SECONDS),
    Goal("how often intervals hold the truth, five seeds", "intervals", _claims, low=0.93, high=0.97, unit=PERCENT),
)  # fmt: skip


def goals() -> str:
    """The table of all goals."""
    return table(("what", "goal", "measured", ""), (goal.row() for goal in GOALS))
