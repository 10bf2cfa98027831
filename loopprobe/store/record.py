"""What config.json of a checkpoint records; read without weights, so that verbs that list models answer soon."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt

from loopprobe.config.schema import AnyConfig, read_config
from loopprobe.config.strict import build, configuration
from loopprobe.errors import LoopprobeError
from loopprobe.store.shipped import CONFIG
from loopprobe.support.statistics import SUMMARY

FORMAT = 1  # the version of config.json, raised when an older reader would misread it


@dataclasses.dataclass(frozen=True)
class RecordedErrors:
    """What config.json records of the errors at the query after a number of loops.

    Attributes:
        loops: the number of loops.
        level: the error above which a prompt counts as failed.
        median, median_low, median_high, failures, failures_low, failures_high, mean: see
            ``statistics.summarise_errors``. All but the mean, and ``level``, are NaN in records of earlier versions.
    """

    loops: int
    level: float
    median: float
    median_low: float
    median_high: float
    failures: float
    failures_low: float
    failures_high: float
    mean: float

    @property
    def words(self) -> str:
        """The median with its interval, or of earlier versions the mean."""
        if math.isnan(self.median):
            return f"mean {self.mean:.2g}"
        return f"{self.median:.2g} [{self.median_low:.2g}, {self.median_high:.2g}]"

    @property
    def failing(self) -> str:
        """The share of failures in words, or a dash."""
        return "–" if math.isnan(self.failures) else f"{self.failures:.2%}"


def recorded_errors(evaluation: dict[str, Any] | None) -> list[RecordedErrors]:
    """Read what a checkpoint's evaluation says of its errors, one entry per number of loops."""
    recorded = evaluation or {}
    loops = recorded.get("loops") or []
    level = recorded.get("failure_level", math.nan)
    if "error" in recorded:  # of an earlier version, which measured means
        recorded = recorded | {"mean": recorded["error"]}
    columns = [recorded.get(name) or [math.nan] * len(loops) for name in SUMMARY]
    return [
        RecordedErrors(n, level, **dict(zip(SUMMARY, numbers, strict=True)))
        for n, *numbers in zip(loops, *columns, strict=True)
    ]


@configuration
class Record:
    """The fields of config.json with their types."""

    format: int
    config: dict[str, Any]
    step: NonNegativeInt
    wall_time_s: NonNegativeFloat
    evaluation: dict[str, Any] | None
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if not self.evaluation:
            return
        parts = (*SUMMARY, "loops") if "median" in self.evaluation else ("loops", "error")
        measured = [self.evaluation.get(part, []) for part in parts]
        numbers = all(isinstance(values, list) and all(type(v) in (int, float) for v in values) for values in measured)
        if not numbers or len({len(values) for values in measured}) > 1:
            raise LoopprobeError("evaluation must hold equally many numbers of loops and errors: restore the file")


def read_json(folder: Path) -> tuple[AnyConfig, dict[str, Any]]:
    """Read the configuration of a checkpoint, and everything that its config.json records."""
    path = folder / CONFIG
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("it is no table of keys and values")
        version = tree["format"]
        if isinstance(version, int) and version > FORMAT:
            raise LoopprobeError(
                f"{path} has format {version} but this loopprobe reads up to {FORMAT}: upgrade loopprobe"
            )
        record = build(Record, {field.name: tree[field.name] for field in dataclasses.fields(Record)})
        return read_config(record.config), tree
    except FileNotFoundError:
        raise LoopprobeError(f"{folder} is no checkpoint: it has no {CONFIG}; give another name or path") from None
    except RecursionError:
        raise LoopprobeError(f"{path} is damaged (nested too deeply): restore it or train the model again") from None
    except LoopprobeError as error:
        raise LoopprobeError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError) as error:
        raise LoopprobeError(f"{path} is damaged ({error!r}): restore it or train the model again") from None
