"""Types that several modules share."""

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any]], Iterable[Any]]  # wraps the steps of long work, to show how far it is
