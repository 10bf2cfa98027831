"""Types and a name that several modules share. No torch."""

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any]], Iterable[Any]]  # wraps the steps of long work, to show how far it is
QUERY = -2  # the query's token, from the end of a prompt: its label is the last
