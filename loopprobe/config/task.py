"""The configuration of a task: which class of functions or which token task, and its parameters. Imports no torch."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.config.token_tasks import TOKEN_TASKS, TokenTask
from loopprobe.errors import LoopprobeError


@configuration
class TaskConfig:
    """A function class or a token task, from which prompts are drawn.

    A field that is None is filled in where the task has it.
    """

    name: Literal[
        "linear_regression",
        "noisy_linear_regression",
        "sparse_linear_regression",
        "decision_tree",
        "relu_network",
        "tables",
        "parity",
        "copy",
        "reverse",
        "addition",
        "modular_addition",
        "cyclic",
        "s5",
        "p_hop",
        "pointer",
        "dyck",
    ] = "linear_regression"
    noise_std: NonNegativeFloat | None = None  # noisy_linear_regression: 0.1; 0 for every other of regression
    sparsity: PositiveInt | None = None  # sparse_linear_regression: how many weights are not zero, 3
    depth: Annotated[int, Field(ge=1, le=30)] | None = None  # decision_tree: questions from the root to a leaf, 4
    hidden: PositiveInt | None = None  # relu_network: hidden units, 100
    tables: tuple[str, ...] = ()  # tables: names of bundled ones, or paths, from which prompts are drawn
    labels: Literal["real", "sign"] | None = None  # of regression: real; sign: +1 or -1, for classification
    length: PositiveInt | None = None  # token tasks: the greatest in training; of bits, digits, hops, see the task
    symbols: Annotated[int, Field(ge=2, le=26)] | None = None  # copy, reverse, p_hop: the letters
    base: Annotated[int, Field(ge=2, le=16)] | None = None  # addition: of the digits
    numbers: Annotated[int, Field(ge=2, le=8)] | None = None  # addition: how many are added
    modulus: Annotated[int, Field(ge=2)] | None = None  # modular_addition, cyclic
    moves: Literal["swaps", "generators", "all"] | None = None  # s5: which elements are composed
    context: Annotated[int, Field(ge=2)] | None = None  # p_hop, dyck: tokens to search; pointer: nodes

    def __post_init__(self) -> None:
        own = _own_fields(self.name)
        for name in _FIELDS:
            value = getattr(self, name)
            if name in own:
                if name == "tables" and not value:
                    raise LoopprobeError("task tables needs task.tables: name one or more")
                object.__setattr__(self, name, own[name] if value is None else value)
            elif value:
                owners = [task for task in _NAMES if name in _own_fields(task)]
                raise LoopprobeError(
                    f"{name} ({value}) is not a field of task {self.name}: set task.name to {' or '.join(owners[:4])}, "
                    f"or drop {name}"
                )
            elif name == "noise_std" and self.tokens is None:
                object.__setattr__(self, name, 0.0)
        if self.name == "p_hop" and (self.symbols or 3) < 3:
            raise LoopprobeError(
                f"symbols ({self.symbols}) must be at least 3 for p_hop: no two neighbours are equal, and "
                "two symbols would only alternate; raise it"
            )
        if self.name == "addition" and (columns := int(self.base or 2) ** int(self.numbers or 2)) > _MOST_COLUMNS:
            raise LoopprobeError(
                f"{self.numbers} numbers in base {self.base} have {columns:,} columns, the most are {_MOST_COLUMNS:,}: "
                "lower task.numbers or task.base"
            )

    @property
    def tokens(self) -> TokenTask | None:
        """The facts of a token task; None for regression."""
        return TOKEN_TASKS.get(self.name)

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
            for name, default in _own_fields(self.name).items()
            if name not in ("noise_std", "tables", "labels") and getattr(self, name) != default
        ]
        parts += [PurePath(table).stem for table in self.tables]
        return "-".join(parts + (["sign"] if self.labels == "sign" else []))


_MOST_COLUMNS = 4096
_REGRESSION: dict[str, dict[str, Any]] = {  # fields of each class, with their defaults
    "linear_regression": {},
    "noisy_linear_regression": {"noise_std": 0.1},
    "sparse_linear_regression": {"sparsity": 3},
    "decision_tree": {"depth": 4},
    "relu_network": {"hidden": 100},
    "tables": {"tables": ()},
}
_NAMES = (*_REGRESSION, *TOKEN_TASKS)
_SHORT = {
    "linear_regression": "lr", "noisy_linear_regression": "nlr", "sparse_linear_regression": "slr",
    "decision_tree": "dt", "relu_network": "relu", "tables": "tab",
    **{name: task.short for name, task in TOKEN_TASKS.items()},
}  # fmt: skip


def _own_fields(name: str) -> dict[str, Any]:
    """The fields that a task has, with their defaults."""
    if name in TOKEN_TASKS:
        return dict(TOKEN_TASKS[name].defaults)
    return _REGRESSION[name] | {"labels": "real"}


_FIELDS = tuple(dict.fromkeys(field for name in _NAMES for field in _own_fields(name)))
