"""Accuracy on tables of real data, trained on and left out: leave-one-dataset-out, as in the reference's study."""

from __future__ import annotations

from pathlib import Path

import xarray as xr
from pydantic import PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes import compare
from loopprobe.probes.dataset import stamp
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.reference.baselines import check_baselines
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import Prompts
from loopprobe.tasks.tables import CLASSES, load_table
from loopprobe.types import Progress


@configuration
class FoldsConfig:
    """The tables, the length of the loop, and what it is compared with.

    Attributes:
        tables: names of bundled tables or paths, whose labels are classes.
        loops: iterations; None: as many as each model was trained with.
        baselines: names, of ``loopprobe.reference.baselines.BASELINES``.
    """

    tables: tuple[str, ...] = CLASSES
    loops: PositiveInt | None = None
    baselines: tuple[str, ...] = ("least_squares", "nearest")


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: FoldsConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Run a model on as many prompts of each table as were given, of the same seed, from rows that no training draws.

    Returns:
        What ``compare`` measures, with a dim ``table`` before the others; and ``trained_on [table]``, whether the
        model's training drew from this table.
    """
    check(checkpoint, config, prompts)
    seed = prompts.origin.get("held_out_seed", 0)
    asked = compare.CompareConfig(loops=config.loops, baselines=config.baselines)
    parts = [
        compare.run(checkpoint, checkpoint.from_table(name, None, len(prompts.ys), seed), asked)
        for name in progress(config.tables)
    ]
    names = [Path(name).stem for name in config.tables]
    data = xr.concat(parts, xr.Variable("table", names), combine_attrs="override")
    seen = [Path(name).stem for name in checkpoint.config.task.tables]
    data["trained_on"] = "table", [name in seen for name in names]
    return stamp(data, "folds", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: FoldsConfig, prompts: Prompts) -> None:
    """Raise LoopprobeError where a table cannot be used or has labels that are no classes, or there is no baseline."""
    check_baselines(config.baselines)
    if not config.tables:
        raise LoopprobeError("no table is named: name one or more")
    for name in config.tables:
        if not load_table(name).n_classes:
            raise LoopprobeError(
                f"the labels of {name} are numbers, not classes: use `loopprobe compare --data {name}`"
            )


PROBE = Probe(
    "folds",
    FoldsConfig,
    run,
    check,
    Shown(
        compare_figure="folds:folds_figure",
        compare_table="study:folds_table",
        compared=True,
        quantities=(Quantity("accuracy", "right", "share", along=("point",), unit="share of right answers"),),
    ),
    of_points=True,
)
