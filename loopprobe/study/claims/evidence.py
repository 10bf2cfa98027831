"""Evidence for claims: the datasets of saved questions, by kind of model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr

from loopprobe.config.schema import TrainConfig
from loopprobe.dynamics.limits import AT_REST
from loopprobe.probes.dataset import read_stamp
from loopprobe.study.estimates import Estimate, Group, Statistic, estimate, log_median, share_of
from loopprobe.study.rules import Rule
from loopprobe.tasks.prompts import FAILURE_LEVEL

Evidence = Mapping[str, Sequence[xr.Dataset]]
# Whose claims they are
STUDY, REFERENCE, OURS = "the study", "Yang et al. 2023", "this project"  # arXiv 2311.12424
SAUNSHI, FAN = "Saunshi et al. 2025", "Fan et al. 2024"  # arXiv 2502.17416 and 2409.15647


class Claim(NamedTuple):
    """A claim: its section, its words, the function that estimates what it says, and whose it is."""

    section: str
    words: str
    estimates: Callable[[Evidence], Iterator[Estimate]]
    by: str = STUDY


# The saved questions that claims read, by the names of their files.
R1_COMPARE, R2_CONVERGE, R3_CONVERGE = "r1_compare", "r2_converge", "r3_converge"
R4_LAST_N, R5_FIRST_N, R6_CONVERGE, R7_CURVES = "r4_last_n", "r5_first_n", "r6_converge", "r7_curves"
R8_CLASSES, R8_SPARSE, R8_DECODE, R8_FOLDS = "r8_classes", "r8_sparse", "r8_decode", "r8_folds"
R2_RECIPES, R9_CONVERGE = "r2_recipes", "r9_converge"
R10_LENGTH, R11_LOOPS, R12_RESULTS, R13_FAILURES = "r10_length", "r11_loops", "r12_results", "r13_failures"
R14_REGRESSION, R14_TOKENS = "r14_regression", "r14_tokens"
# The same questions of models that were trained by the study's own recipe.
CONTROLS = {
    R1_COMPARE: "r1_compare_study", R2_CONVERGE: "r2_converge_study", R3_CONVERGE: "r3_converge_study",
    R4_LAST_N: "r4_last_n_study", R5_FIRST_N: "r5_first_n_study",
}  # fmt: skip
QUESTIONS = (
    *CONTROLS.values(),
    R1_COMPARE, R2_CONVERGE, R2_RECIPES, R3_CONVERGE, R4_LAST_N, R5_FIRST_N, R6_CONVERGE, R7_CURVES,
    R8_CLASSES, R8_SPARSE, R8_DECODE, R8_FOLDS, R9_CONVERGE, R10_LENGTH, R11_LOOPS, R12_RESULTS, R13_FAILURES,
    R14_REGRESSION, R14_TOKENS,
)  # fmt: skip
Seeds = xr.DataArray  # [seed, example] or [seed, example, part], with the model of every seed as its coordinate


class MissingQuestionError(LookupError):
    """A claim reads a question that is not among the evidence; the argument is its name."""


def answers(evidence: Evidence, question: str) -> Sequence[xr.Dataset]:
    """Return the datasets of a question, none if none of its checkpoints exists.

    Raises:
        MissingQuestionError: the question is not among the evidence.
    """
    if question not in evidence:
        raise MissingQuestionError(question)
    return evidence[question]


@dataclass(frozen=True, order=True)
class Kind:
    """The properties of a model without its seed."""

    task: str
    layers: int
    loops: int
    window: int
    grown: bool
    steps: int
    loss: str = "mse"
    optimizer: str = "muon"

    def __str__(self) -> str:
        parts = ["noisy"] if self.task.startswith("noisy") else []
        parts += [f"L {self.layers}"] if self.layers > 1 else []
        parts += ["b grown"] if self.grown else [f"b {self.loops}"]
        parts += [f"T {self.window}"]
        return ", ".join(parts + self._trained)

    @property
    def of_ordinary(self) -> str:
        """The kind of an ordinary transformer, which has layers in place of loops and a window."""
        return ", ".join([f"L {self.layers}", *self._trained])

    @property
    def _trained(self) -> list[str]:
        parts = [f"{self.steps} steps"] if self.steps != TrainConfig.steps else []
        parts += [f"{self.loss} loss"] if self.loss == "log" else []
        parts += [self.optimizer.capitalize()] if self.optimizer != TrainConfig.optimizer else []
        return parts


def kinds(datasets: Sequence[xr.Dataset]) -> dict[Kind, list[xr.Dataset]]:
    """Group datasets by kind, with the seeds of a kind in order."""
    seeds: dict[Kind, list[tuple[int, xr.Dataset]]] = {}
    for data in datasets:
        cfg = read_stamp(data).config
        train: dict[str, Any] = cfg["train"] or {}
        kind = Kind(
            cfg["task"]["name"], cfg["model"]["n_layers"], cfg["model"]["n_loops"], train.get("loop_window", 0),
            train.get("loops", {}).get("kind", "constant") == "linear", train.get("steps", 0),
            train.get("loss", "mse"), train.get("optimizer", "muon"),
        )  # fmt: skip
        seeds.setdefault(kind, []).append((train.get("seed", 0), data))
    return {
        kind: [data for _, data in sorted(pairs, key=lambda pair: pair[0])] for kind, pairs in sorted(seeds.items())
    }


def of_seeds(datasets: Sequence[xr.Dataset], values: Iterable[Any]) -> Seeds:
    """Return what was computed of every seed, [example] or [example, part], with the configuration of its model."""
    models = [json.dumps(read_stamp(data).config, sort_keys=True) for data in datasets]
    stacked = np.stack([np.asarray(one) for one in values])
    return xr.DataArray(stacked, {"seed": models}, ("seed", "example", "part")[: stacked.ndim])


def side_by_side(*states: Seeds) -> Seeds:
    """Return the values of the models that all states have, in these states as their parts."""
    states = xr.align(*states, join="inner", copy=False)
    return xr.concat(list(states), "part", coords="minimal", compat="override").transpose("seed", "example", "part")


def group(values: Seeds, statistic: Statistic, of_seeds: Literal["all", "these", "most", "least"] = "all") -> Group:
    """Return the models of the values as a group of which the statistic is computed."""
    return Group(values.values, statistic, of_seeds, tuple(map(str, values.seed.values)))


def ratio(what: str, one: Seeds, other: Seeds, rule: Rule) -> Estimate:
    """Estimate the ratio of the typical errors of two groups of models."""
    return estimate(what, rule, "ratio", group(one, log_median), group(other, log_median))


def own_ratio(what: str, one: Seeds, other: Seeds, rule: Rule) -> Estimate:
    """Estimate the ratio of the typical errors of the same models in two states, or its mean over pairs of states."""
    return estimate(what, rule, "ratio", group(side_by_side(one, other), log_median))


def difference(what: str, one: Seeds, other: Seeds, rule: Rule) -> Estimate:
    """Estimate the difference of the shares of two groups of models."""
    return estimate(what, rule, "difference", group(one, share_of), group(other, share_of))


def own_difference(what: str, one: Seeds, other: Seeds, rule: Rule) -> Estimate:
    """Estimate the difference of the shares of the same models in two states."""
    return estimate(what, rule, "difference", group(side_by_side(one, other), share_of))


def share(what: str, values: Seeds, rule: Rule) -> Estimate:
    """Estimate a share of a group of models."""
    return estimate(what, rule, "share", group(values, share_of))


def failed(errors: Seeds) -> Seeds:
    """Return 1 where a prompt fails, else 0."""
    return (errors > FAILURE_LEVEL).astype(float)


def at_rest(datasets: Sequence[xr.Dataset]) -> Seeds:
    """Return the share of a prompt's tokens whose state comes to a fixed point, or approaches one."""
    return of_seeds(datasets, (data.limit.isin(AT_REST).mean("position") for data in datasets))


def errors_at(datasets: Sequence[xr.Dataset], variable: str = "error", **where: Any) -> Seeds:
    """Return the errors of every seed at the given coordinates."""
    return of_seeds(datasets, (data[variable].sel(where) for data in datasets))


def at_query(datasets: Sequence[xr.Dataset]) -> Seeds:
    """Return the errors of every seed at the last point."""
    return of_seeds(datasets, (data.error.isel(point=-1) for data in datasets))


def far(datasets: Sequence[xr.Dataset], loop: int | None = None) -> Seeds:
    """Return the query errors after ``loop`` loops; None: after the last loop."""
    return errors_at([data.isel(loop=-1) for data in datasets]) if loop is None else errors_at(datasets, loop=loop)


def by_loops(by_kind: Mapping[Kind, Any], window: int) -> dict[int, Kind]:
    """Return the kinds of one study window T by b; a window above the loop count equals the loop count."""
    return {k.loops: k for k in by_kind if k.loops > 1 and not k.grown and k.window == min(window, k.loops)}
