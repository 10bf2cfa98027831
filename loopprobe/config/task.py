"""The configuration of a task: which class of functions, and its parameters. Imports no torch."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError


@configuration
class TaskConfig:
    """A function class from which prompts are drawn. A field that is None is filled in where the class has it."""

    name: Literal[
        "linear_regression",
        "noisy_linear_regression",
        "sparse_linear_regression",
        "decision_tree",
        "relu_network",
        "tables",
    ] = "linear_regression"
    noise_std: NonNegativeFloat | None = None  # noisy_linear_regression: 0.1; 0 for every other
    sparsity: PositiveInt | None = None  # sparse_linear_regression: how many weights are not zero, 3
    depth: Annotated[int, Field(ge=1, le=30)] | None = None  # decision_tree: questions from the root to a leaf, 4
    hidden: PositiveInt | None = None  # relu_network: hidden units, 100
    tables: tuple[str, ...] = ()  # tables: names of bundled ones, or paths, from which prompts are drawn
    labels: Literal["real", "sign"] = "real"  # sign: +1 or -1, for classification

    def __post_init__(self) -> None:
        for name, (owner, default) in _TASK_FIELDS.items():
            value = getattr(self, name)
            if self.name == owner:
                if owner == "tables" and not value:
                    raise LoopprobeError("task tables needs task.tables: name one or more")
                object.__setattr__(self, name, default if value is None else value)
            elif value:
                raise LoopprobeError(
                    f"{name} ({value}) is not a field of task {self.name}: set task.name to {owner} or drop {name}"
                )
            elif name == "noise_std":
                object.__setattr__(self, name, 0.0)

    def scale(self, n_dims: int) -> float:
        """E(y²) without noise, for inputs ~ N(0, I) in n_dims dimensions; errors are divided by it."""
        if self.labels == "sign" or self.name in ("decision_tree", "tables"):
            return 1.0
        return float(n_dims if self.sparsity is None else min(self.sparsity, n_dims))

    @property
    def short(self) -> str:
        """The part of a model's name, such as ``lr``, with what is special in the task."""
        parts = [_SHORT[self.name]]
        parts += [
            f"{name}{getattr(self, name)}"
            for name, (owner, default) in _TASK_FIELDS.items()
            if name not in ("noise_std", "tables") and owner == self.name and getattr(self, name) != default
        ]
        parts += [PurePath(table).stem for table in self.tables]
        return "-".join(parts + (["sign"] if self.labels == "sign" else []))


_TASK_FIELDS: dict[str, tuple[str, Any]] = {  # whose it is, and its default there
    "noise_std": ("noisy_linear_regression", 0.1),
    "sparsity": ("sparse_linear_regression", 3),
    "depth": ("decision_tree", 4),
    "hidden": ("relu_network", 100),
    "tables": ("tables", ()),
}
_SHORT = {
    "linear_regression": "lr", "noisy_linear_regression": "nlr", "sparse_linear_regression": "slr",
    "decision_tree": "dt", "relu_network": "relu",
    "tables": "tab",
}  # fmt: skip
