"""Progress: bars in a terminal or a notebook, and plain lines elsewhere.

A line is printed ``FIRST`` seconds after the start and then every ``EVERY`` seconds, so that the log of a job on a
cluster shows its progress.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
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

FIRST, EVERY = 5.0, 30.0  # seconds
EACH = 0.5  # seconds after which it is looked whether a line is due


class Lines:
    """Plain lines on stderr that show the progress of long work.

    Args:
        description: the name of the work.
        total: the number of its steps; None where it is not known.
        before: the number of steps that were done before, whose time is not known.
    """

    def __init__(self, description: str, total: int | None, before: int = 0) -> None:
        self.description, self.total, self.before = description, total, before
        self.started = time.monotonic()
        self.next = self.started + FIRST

    def during(self, steps: Iterable[Any]) -> Iterator[Any]:
        """Yield the steps, and print the lines that are due meanwhile, however long a single step takes."""
        count, over = 0, threading.Event()

        def tell() -> None:
            while not over.wait(EACH):
                self.done(count)

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            for step in steps:
                yield step
                count += 1
        finally:
            over.set()
            teller.join()

    def done(self, count: int, more: str = "") -> None:
        """Report the number of steps done, and print a line if one is due.

        Args:
            count: the number of steps done.
            more: further text for the end of the line, such as the error.
        """
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + EVERY
        spent = now - self.started
        total = "" if self.total is None else f" of {self.total:,}"
        now_done = count - self.before
        left = f", {spent * (self.total - count) / now_done:,.0f} s left" if self.total and now_done > 0 else ""
        print(f"{self.description}: {count:,}{total} after {spent:,.0f} s{left}{more}", file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    return Console(stderr=True).is_terminal


def track(description: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Return a wrapper of iterables that shows their progress on stderr; it uses no widgets in a notebook."""

    def wrap(steps: Iterable[Any]) -> Iterator[Any]:
        if Console().is_jupyter:
            yield from tqdm(steps, desc=description, ncols=80)
        elif _is_terminal():
            with _bar(TextColumn("")) as bar:
                yield from bar.track(steps, description=description)
        else:
            yield from Lines(description, len(steps) if isinstance(steps, Sized) else None).during(steps)

    return wrap


@contextmanager
def training_progress(steps: int, description: str, before: int = 0) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show what is measured and the time left; yield the function that updates them from a row of metrics.

    Args:
        steps: the number of steps in all.
        description: the name of the work.
        before: the number of steps that an earlier run did.
    """
    bar = _bar(TextColumn("{task.fields[measured]}"))
    task = bar.add_task(description, total=steps, completed=before, measured="")
    lines = Lines(description, steps, before)

    def report(row: dict[str, Any]) -> None:
        shown = [name for name in ("loss", "error", "accuracy", "length") if name in row]
        measured = ", ".join(f"{name} {row[name]:.3g}" for name in shown)
        if not _is_terminal():
            lines.done(row["step"], f", {measured}")
            return
        bar.start()  # starts with the first row, so that a run that cannot start shows no bar
        bar.update(task, completed=row["step"], measured=measured)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def sweep_progress(steps: dict[str, int]) -> Iterator[Callable[[dict[str, dict[str, Any]]], None]]:
    """Show a bar for each model and one for all; yield the function that updates them from rows of metrics."""
    if not _is_terminal():
        lines = Lines(f"{len(steps)} models", sum(steps.values()))
        yield lambda rows: lines.done(sum(row["step"] for row in rows.values()), " (steps of all models)")
        return
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
