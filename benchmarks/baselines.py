"""Baselines on every prefix of many prompts, against the obvious loop over prompts and prefixes.

    python benchmarks/baselines.py        # about 2 minutes on two cores

Least squares, ridge, averaging and nearest neighbours of 1,280 prompts of 41 points in 20 dimensions, batched, and
prompt by prompt with numpy, in turn, after two calls that do not count (the loop on 128 prompts, its time scaled up);
then the baselines that are fitted prefix by prefix, on 48 prompts, scikit-learn's in parallel and one by one. The first
of those in a process starts the workers, once; that is timed by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import table, write
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import Lasso
from sklearn.tree import DecisionTreeRegressor

from loopprobe.config.schema import TaskConfig
from loopprobe.reference.baselines import BASELINES
from loopprobe.support.provenance import provenance
from loopprobe.tasks import Prompts, held_out

Solve = Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # from examples, labels and the query to the prediction


def _nearest(x: np.ndarray, y: np.ndarray, query: np.ndarray) -> float:
    return float(y[np.argsort(np.linalg.norm(x - query, axis=1))[:3]].mean())


def _sklearn(make: Callable[[], object]) -> Solve:
    return lambda x, y, query: float(make().fit(x, y).predict(query[None])[0])  # type: ignore[attr-defined]


LOOPS: dict[str, Solve] = {
    "least_squares": lambda x, y, query: float(query @ np.linalg.lstsq(x, y, rcond=None)[0]),
    "ridge": lambda x, y, query: float(query @ np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)),
    "averaging": lambda x, y, query: float(query @ (x.T @ y) / len(y)),
    "nearest": _nearest,
    "lasso": _sklearn(lambda: Lasso(alpha=0.01, fit_intercept=False, max_iter=1000)),
    "tree": _sklearn(lambda: DecisionTreeRegressor(random_state=0)),
    "boosting": _sklearn(lambda: GradientBoostingRegressor(random_state=0)),
}


def loop(prompts: Prompts, solve: Solve) -> np.ndarray:
    """What one writes first: prompt by prompt, prefix by prefix."""
    found = np.zeros(prompts.ys.shape)
    for i, (xs, ys) in enumerate(zip(prompts.xs.double().numpy(), prompts.ys.double().numpy(), strict=True)):
        for k in range(1, len(ys)):
            found[i, k] = solve(xs[:k], ys[:k], xs[k])
    return found


def timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def page(found: dict[str, Any]) -> str:
    """The measurements as a table in Markdown."""
    rows = [
        [
            BASELINES[name].words,
            f"{row['prompts']:,}",
            f"{row['seconds']:.2g}",
            *(
                [f"{row['loop_seconds']:.2g}", f"{row['loop_seconds'] / row['seconds']:.1f}"]
                if "loop_seconds" in row
                else "––"
            ),
        ]
        for name, row in found["rows"].items()
    ]
    started = f"Starting the workers of scikit-learn's takes {found['start_seconds']:.2g} seconds more, once."
    return table(["baseline", "prompts", "seconds", "the obvious loop", "ratio"], rows) + f"\n\n{started}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    many, few = held_out(TaskConfig(), 1280, 41, 20), held_out(TaskConfig(), 48, 41, 20)
    rows: dict[str, dict[str, float]] = {}
    first, again = (timed(lambda: BASELINES["lasso"].predict(few, lambda steps: steps))[0] for _ in range(2))
    for name, baseline in BASELINES.items():
        prompts = few if baseline.slow else many
        put_to = prompts if baseline.sklearn else prompts[:128]
        fast, slow = [], []
        if not baseline.slow:  # the first calls fetch their memory from the system
            for _ in range(2):
                baseline.predict(prompts, lambda steps: steps)
        for _ in range(args.repeats if not baseline.slow else 1):
            seconds, predictions = timed(lambda: baseline.predict(prompts, lambda steps: steps))  # noqa: B023
            fast.append(seconds)
            if name in LOOPS:
                seconds, expected = timed(lambda: loop(put_to, LOOPS[name]))  # noqa: B023
                slow.append(seconds * len(prompts.ys) / len(put_to.ys))
                difference = np.median(np.abs(predictions.numpy()[: len(put_to.ys)] - expected))  # type: ignore[attr-defined]
                assert difference < 1e-6, name
        rows[name] = {"prompts": len(prompts.ys), "seconds": statistics.median(fast)}
        if slow:
            rows[name]["loop_seconds"] = statistics.median(slow)
        times = f", the loop {rows[name]['loop_seconds']:.1f} s" if slow else ""
        print(f"{baseline.words}, {len(prompts.ys)} prompts: {rows[name]['seconds']:.2f} s{times}")
    machine = provenance("cpu", torch.float32)
    write(__file__, {"machine": machine, "start_seconds": first - again, "rows": rows})


if __name__ == "__main__":
    main()
