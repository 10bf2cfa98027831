"""Types that several modules share. No torch."""

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any]], Iterable[Any]]  # wraps the steps of long work, to show how far it is

PRECISIONS = ("float32", "bfloat16", "float16", "float64")  # of a model, by torch's names
