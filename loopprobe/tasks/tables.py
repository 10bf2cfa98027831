"""Prompts from tables of real data: the rows are the points, and one column is the label.

A table is split in two halves, one for training and one for evaluation. Columns are standardised on the first half.
If there are more columns than the model reads, they are projected on their leading principal components, each of which
is scaled to variance one. If there are fewer, they are padded with zeros. Every prompt takes its rows without
replacement and turns its inputs by a random rotation, so that no model can learn a table by heart. Where the label is
a class, a prompt chooses two classes at random and labels them +1 and -1.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.files import BUNDLED, read_file
from loopprobe.tasks.prompts import Prompts, normal, uniform

if TYPE_CHECKING:
    import pandas as pd

CLASSES = ("breast_cancer", "digits", "iris", "wine")  # the bundled tables whose labels are classes


@dataclass(frozen=True)
class Table:
    """A table of numbers, with a label for each row.

    Attributes:
        name: the name of the table.
        inputs: the numbers, [row, column].
        labels: the labels, [row]: numbers, or class numbers from 0.
        n_classes: the number of classes; 0 where the labels are numbers.
        columns: the names of the inputs.
        target: the name of the label.
        sha256: of the file; empty: it is bundled.
    """

    name: str
    inputs: Float[ndarray, "row column"]
    labels: Float[ndarray, " row"] | Int[ndarray, " row"]
    n_classes: int
    columns: tuple[str, ...]
    target: str
    sha256: str = ""
    _made: dict[int, tuple[ndarray, ndarray, int]] = field(default_factory=dict, repr=False)

    def half(self, part: str) -> Int[ndarray, " row"]:
        """Return the rows of the ``train`` or ``test`` half, the same on every machine."""
        order = np.random.default_rng(0).permutation(len(self.labels))
        middle = len(order) // 2
        return order[:middle] if part == "train" else order[middle:]

    def how(self, n_dims: int) -> str:
        """Say in words how the columns are brought to the width of the model."""
        n_columns = len(self.columns)
        if n_columns > n_dims:
            return f"{n_columns} columns projected on {n_dims} principal components"
        return f"{n_columns} columns" + (f" padded to {n_dims} with zeros" if n_columns < n_dims else "")

    @functools.cached_property
    def _standard(self) -> tuple[ndarray, ndarray]:
        inside = self.half("train")
        mean, std = self.inputs[inside].mean(0), self.inputs[inside].std(0)
        constant = np.flatnonzero(std < 1e-12)
        if self.name in BUNDLED:  # some pixels of the digits are always dark
            std[constant] = 1.0
        elif len(constant):
            raise LoopprobeError(f"{self.name}: column {self.columns[constant[0]]!r} is constant: drop it")
        values = (self.inputs - mean) / std
        labels = self.labels.astype(float)
        if not self.n_classes:
            spread = labels[inside].std()
            if spread < 1e-12:
                raise LoopprobeError(f"{self.name}: the label {self.target!r} is constant: name another")
            labels = (labels - labels[inside].mean()) / spread
        return values, labels

    def arrays(self, n_dims: int) -> tuple[Float[ndarray, "row n_dims"], Float[ndarray, " row"], int]:
        """Return standardised inputs of width ``n_dims``, labels, and the number of filled dimensions."""
        if n_dims not in self._made:
            self._made[n_dims] = self._as_wide_as(n_dims)
        return self._made[n_dims]

    def _as_wide_as(self, n_dims: int) -> tuple[ndarray, ndarray, int]:
        values, labels = self._standard
        if values.shape[1] > n_dims:
            train = values[self.half("train")]
            directions = np.linalg.svd(train, full_matrices=False)[2][:n_dims]
            signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])
            directions = directions * signs[:, None]  # the sign of a component is arbitrary: fix it
            values = values @ directions.T / (train @ directions.T).std(0)
        filled = values.shape[1]
        return np.pad(values, ((0, 0), (0, n_dims - filled))), labels, filled


def load_table(name: str, target: str | None = None) -> Table:
    """Load a bundled table by its name, or a table file by its path, see ``tasks.files``.

    Args:
        name: one of ``BUNDLED``, or a path.
        target: the column that is the label. None stands for the label of a bundled table, or the last column of a
            file. A column that holds text or booleans is taken for classes.

    Raises:
        LoopprobeError: there is no such table or column, the inputs hold text or lack values, or the package that
            reads the table is not installed.
    """
    return _loaded(name, target, _version(name))


def _version(name: str) -> tuple[str | int, ...]:
    """What changes where a file of this name becomes another one."""
    try:
        state = (path := Path(name)).stat()
        return str(path.resolve()), state.st_ino, state.st_mtime_ns, state.st_size
    except (OSError, ValueError):  # a bundled table; or reading tells what is wrong
        return ()


@functools.lru_cache(maxsize=32)
def _loaded(name: str, target: str | None, version: tuple[str | int, ...]) -> Table:
    is_file, path = name not in BUNDLED, Path(name)
    frame, classes = (read_file(path), False) if is_file else _bundled(name)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
    columns = [str(column) for column in frame.columns]
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise LoopprobeError(f"{name}: several columns are called {repeated[0]!r}: rename or drop all but one")
    frame.columns = columns
    chosen = columns[-1] if target is None else target
    if chosen not in columns:
        raise LoopprobeError(f"{name} has no column {chosen!r}: choose from {', '.join(columns)}")
    inputs = frame.drop(columns=chosen)
    for column in inputs:
        if inputs[column].dtype.kind not in "iufb":
            raise LoopprobeError(f"{name}: column {column!r} holds text: drop it, or turn it into numbers")
        if missing := int(inputs[column].isna().sum()):
            raise LoopprobeError(f"{name}: column {column!r} lacks {missing} values: fill them or drop these rows")
        if infinite := int(np.isinf(inputs[column].to_numpy(float)).sum()):
            raise LoopprobeError(f"{name}: column {column!r} holds {infinite} infinite values: drop these rows")
    label = frame[chosen]
    if missing := int(label.isna().sum()):
        raise LoopprobeError(f"{name}: the label {chosen!r} lacks {missing} values: drop these rows")
    classes = classes or label.dtype.kind not in "iuf"
    if not classes and (infinite := int(np.isinf(label.to_numpy(float)).sum())):
        raise LoopprobeError(f"{name}: the label {chosen!r} holds {infinite} infinite values: drop these rows")
    labels = label.astype("category").cat.codes.to_numpy() if classes else label.to_numpy(float)
    n_classes = int(labels.max()) + 1 if classes else 0
    if classes and n_classes < 2:
        raise LoopprobeError(f"{name}: the label {chosen!r} has one class only: name another")
    return Table(path.stem, inputs.to_numpy(float), labels, n_classes, tuple(inputs.columns), chosen, sha256)


def from_tables(
    tables: list[Table],
    n_prompts: int,
    n_points: int,
    n_dims: int,
    generator: torch.Generator,
    *,
    part: str = "test",
    scale: float = 1.0,
) -> Prompts:
    """Draw prompts, each from one of the tables.

    Args:
        tables: the tables, at least one.
        n_prompts, n_points, n_dims: the number of prompts, the number of points in a prompt, and the width of x.
        generator: a CPU generator; it alone determines the result.
        part: the half of the rows: ``train`` or ``test``.
        scale: E(y²) of the labels that the model was trained on; the labels are multiplied by its root.

    Raises:
        LoopprobeError: a table has too few rows for a prompt.
    """
    arrays = [table.arrays(n_dims) for table in tables]
    halves = [table.half(part) for table in tables]
    choices = uniform((n_prompts, 3), generator).numpy()
    turns = normal((n_prompts, n_dims, n_dims), generator)
    keys = uniform((n_prompts, max(len(half) for half in halves)), generator).numpy()
    xs, ys = np.zeros((n_prompts, n_points, n_dims)), np.zeros((n_prompts, n_points))
    for i, (which, one, other) in enumerate(choices):
        k = int(which * len(tables))
        table, rows, (values, labels, filled) = tables[k], halves[k], arrays[k]
        first = int(one * table.n_classes)
        if table.n_classes:
            second = (first + 1 + int(other * (table.n_classes - 1))) % table.n_classes
            rows = rows[np.isin(table.labels[rows], (first, second))]
        if len(rows) < n_points:
            raise LoopprobeError(
                f"{table.name} has {len(rows)} rows for a prompt but a prompt takes {n_points} points: "
                "take a larger table, or a model with fewer points"
            )
        rows = rows[keys[i, : len(rows)].argsort()[:n_points]]
        turn = torch.linalg.qr(turns[i, :filled, :filled]).Q.numpy()
        xs[i, :, :filled] = values[rows, :filled] @ turn
        ys[i] = np.where(table.labels[rows] == first, 1.0, -1.0) if table.n_classes else labels[rows]
    origin = {
        "data": [table.name for table in tables],
        "columns": [table.how(n_dims) for table in tables],
        "part": part,
        "labels": "sign" if all(table.n_classes for table in tables) else "real",
    }
    origin |= {"sha256": files} if any(files := [table.sha256 for table in tables]) else {}
    return Prompts(torch.from_numpy(xs).float(), torch.from_numpy(ys * scale**0.5).float(), origin, scale=scale)


def _bundled(name: str) -> tuple[pd.DataFrame, bool]:
    try:
        import sklearn.datasets
    except ImportError:
        raise LoopprobeError(f"the table {name!r} is scikit-learn's: pip install 'loopprobe[tables]'") from None
    loaded = getattr(sklearn.datasets, f"load_{name}")(as_frame=True)
    return loaded.frame, name in CLASSES
