"""Progress bars, in one style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tqdm import tqdm


def track(description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A function that wraps a sized iterable in a progress bar on stderr; in a notebook, one that needs no widgets."""

    def wrap(steps: Iterable[Any]) -> Iterator[Any]:
        if Console().is_jupyter:
            yield from tqdm(steps, desc=description, ncols=80)
            return
        with _bar(TextColumn("")) as bar:
            yield from bar.track(steps, description=description)

    return wrap


@contextmanager
def training_progress(steps: int, description: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar with loss, error and time left, moved by rows of metrics."""
    bar = _bar(TextColumn("loss {task.fields[loss]} error {task.fields[error]}"))
    task = bar.add_task(description, total=steps, loss="–", error="–")

    def report(row: dict[str, Any]) -> None:
        bar.start()  # with the first row: a run that cannot start shows no bar
        bar.update(task, completed=row["step"], loss=f"{row['loss']:.3g}", error=f"{row['error']:.3g}")

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def sweep_progress(steps: dict[str, int]) -> Iterator[Callable[[dict[str, dict[str, Any]]], None]]:
    """One bar a model and one for all, moved by the last rows of metrics."""
    with _bar(TextColumn("{task.fields[error]}")) as bar:
        total = bar.add_task("all", total=sum(steps.values()), error="")
        tasks = {name: bar.add_task(name, total=count, error="") for name, count in steps.items()}

        def report(rows: dict[str, dict[str, Any]]) -> None:
            for name, row in rows.items():
                bar.update(tasks[name], completed=row["step"], error=f"error {row['error']:.3g}")
            bar.update(total, completed=sum(row["step"] for row in rows.values()))

        yield report


def _bar(*fields: TextColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), *fields,
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
