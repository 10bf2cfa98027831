"""The configuration of a task: its name, its parameters, and the place of a task of one's own. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError


def _registry() -> Any:
    """The tasks by name. They draw tensors, and this room is imported without torch: they are, when one is made."""
    return import_module("loopprobe.tasks.registry")


@configuration
class TaskConfig:
    """A task, from which prompts are drawn, and its parameters.

    The name is that of a task that ships, was registered, or is an entry point of an installed package; or
    ``file.py:Name`` or ``package.module:Name`` of a task of one's own. A field that is None is filled in where the task
    has it. The fields from ``noise_std`` to ``context`` are parameters of tasks that ship; those of one's own stand in
    ``parameters``, except for ``length``.
    """

    name: str = "linear_regression"
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
    parameters: dict[str, Any] | None = dataclasses.field(default=None, hash=False)  # of a task of one's own
    source: str | None = None  # of a task of one's own, recorded: file.py:Name with its whole path, or module:Name
    sha256: str | None = None  # of a task of one's own, recorded: the hash of its source file

    def __post_init__(self) -> None:
        entry = _registry().find(self.name) if self.sha256 is None else _registry().known(self)
        if entry is None:  # as it is recorded, and nothing runs to check it
            return
        if entry.shipped:
            self._complete_shipped(entry.defaults)
        else:
            self._complete_own(entry)
        object.__setattr__(self, "_rules", _registry().made(entry, self.arguments(entry.defaults)))
        if self.length is None and entry.reads_tokens:
            object.__setattr__(self, "length", self.rules.length)

    def _complete_shipped(self, defaults: Mapping[str, Any]) -> None:
        if self.parameters or self.source:
            raise LoopprobeError(
                f"parameters and source are of a task of your own, and {self.name} ships with loopprobe: drop them"
            )
        for name in _PARAMETERS:
            value = getattr(self, name)
            if name in defaults:
                object.__setattr__(self, name, defaults[name] if value is None else value)
            elif value:
                owners = [task for task in _registry().SHIPPED if name in _registry().find(task).defaults]
                raise LoopprobeError(
                    f"{name} ({value}) is not a field of task {self.name}: set task.name to {' or '.join(owners[:4])}, "
                    f"or drop {name}"
                )
            elif name == "noise_std" and "length" not in defaults:
                object.__setattr__(self, name, 0.0)

    def _complete_own(self, entry: Any) -> None:
        for name in _PARAMETERS:
            if getattr(self, name) and not (name == "length" and entry.reads_tokens):
                raise LoopprobeError(
                    f"{name} ({getattr(self, name)}) is of tasks that ship, and {entry.name} is none: set "
                    f"task.parameters.{name} if it has one, or drop it"
                )
        defaults = {name: value for name, value in entry.defaults.items() if name != "length"}
        given = self.parameters or {}
        if unknown := sorted(given.keys() - defaults.keys()):
            near = difflib.get_close_matches(unknown[0], defaults, n=2) or list(defaults)
            hint = f"choose {' or '.join(near)}" if near else "it has none, drop it"
            raise LoopprobeError(f"task {entry.name} has no parameter {unknown[0]!r}: {hint}")
        values = {name: _plain(entry.name, name, value) for name, value in (defaults | given).items()}
        recorded = {"name": entry.name, "parameters": values or None}
        if self.sha256 is None:
            recorded |= {"source": entry.source.place, "sha256": entry.source.sha256}
        for name, value in recorded.items():
            object.__setattr__(self, name, value)

    @property
    def rules(self) -> Any:
        """The task itself, a ``RegressionTask`` or a ``TokenTask``: what draws its prompts.

        Raises:
            LoopprobeError: it is a task of one's own that cannot be imported, or has changed since it was recorded.
        """
        if "_rules" not in self.__dict__:
            object.__setattr__(self, "_rules", _registry().rules_of(self))
        return self.__dict__["_rules"]

    @property
    def known(self) -> Any:
        """The task itself, or None where foreign code would have to run for it."""
        return self.rules if "_rules" in self.__dict__ or _registry().known(self) is not None else None

    @property
    def reads_tokens(self) -> bool:
        """Whether its prompts are tokens; else they are labelled points."""
        return self.length is not None

    def arguments(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of these names, as the task is made with."""
        own = self.parameters or {}
        values = {name: own[name] if name in own else getattr(self, name, None) for name in names}
        return {name: value for name, value in values.items() if name in own or value is not None}

    @property
    def origin(self) -> dict[str, Any]:
        """The record of the task that prompts carry."""
        fields = {name: getattr(self, name) for name in _PARAMETERS}
        kept = {name: value for name, value in fields.items() if (value if self.reads_tokens else value is not None)}
        if self.sha256 is not None:
            kept = {"parameters": self.parameters or {}, "sha256": self.sha256}
            kept |= {"labels": "sign"} if getattr(self.rules, "labels", "real") == "sign" else {}
        return {"task": self.name, **kept}

    def scale(self, n_dims: int) -> float:
        """E(y²) without noise, for inputs of n_dims dimensions; errors are divided by it."""
        return float(self.rules.scale(n_dims))

    @property
    def short(self) -> str:
        """The part of a model's name, such as ``lr``, with what is special in the task."""
        rules = self.known
        if rules is None:
            return self.name.lower()
        defaults = _registry().entry_for(self).defaults
        special = {name: value for name, value in self.arguments(defaults).items() if value != defaults[name]}
        parts = [rules.short or self.name.lower()]
        parts += [
            f"{name}{re.sub('[^A-Za-z0-9.+-]', '', str(value))}"
            for name, value in special.items()
            if self.sha256 is not None or name not in ("noise_std", "tables", "labels")
        ]
        if self.sha256 is not None and self.reads_tokens and "length" not in defaults and self.length != rules.length:
            parts.append(f"length{self.length}")
        parts += [PurePath(table).stem for table in self.tables]
        return "-".join(parts + (["sign"] if self.labels == "sign" else []))

    def __getstate__(self) -> dict[str, Any]:
        """The fields, and what another process needs to make the same task."""
        fields = {name: value for name, value in self.__dict__.items() if name != "_rules"}
        return fields | {"_sent": _registry().sent(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        source = state.pop("_sent", None)
        self.__dict__.update(state)
        if source is not None:
            _registry().bring(self, source)


_PARAMETERS = tuple(
    field.name
    for field in dataclasses.fields(TaskConfig)
    if field.name not in ("name", "parameters", "source", "sha256")
)


def _plain(task: str, name: str, value: Any) -> Any:
    """A parameter as JSON holds it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise LoopprobeError(
            f"parameter {name} of task {task} ({value!r:.40}) must be plain data, which config.json records: give a "
            "number, a string, or a list or table of them"
        ) from None


def require_recorded(task: Any) -> None:
    """Raise LoopprobeError where a recorded task is one of one's own without its hash: its code must not run."""
    if isinstance(task, Mapping) and task.get("sha256") is None:
        name = task.get("name", TaskConfig.name)
        if name not in _registry().SHIPPED:
            raise LoopprobeError(
                f"task.name ({str(name)[:60]!r}) is not valid: no task that ships is called so, and one of your own is "
                "recorded with the hash of its source; restore it"
            )
