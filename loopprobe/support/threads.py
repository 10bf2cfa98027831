"""Parts of one work at the same time, each in a thread of its own whose operations use few processors.

Torch's own threads share out single operations, and wait for each other at the end of each. Where other processes run
on the same processors that wait is longer than the work, and an operation of a small model takes ten times as long.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

MOST = 8  # threads: more would wait for the interpreter, which runs one of them at a time

Part = TypeVar("Part")
Result = TypeVar("Result")


class Stopped(Exception):
    """The work that a thread does a part of has ended, and nobody waits for this part."""


class _Here(threading.local):
    stop: threading.Event | None = None


_here = _Here()


def go_on() -> None:
    """Raise Stopped in a thread of ``Parallel`` or within ``stoppable`` whose results nobody waits for any more."""
    if _here.stop is not None and _here.stop.is_set():
        raise Stopped


@contextmanager
def stoppable(stop: threading.Event) -> Iterator[None]:
    """Let an event stop the work of this thread, while a block lasts, at the next ``go_on``."""
    before, _here.stop = _here.stop, stop
    try:
        yield
    finally:
        _here.stop = before


class Parallel(Generic[Part, Result]):
    """The results of a function for each part, in the order of the parts; a length, which progress bars ask for.

    An error in a part is raised in its place. After it, or where the iteration is left, threads stop at the next
    ``go_on``, and are waited for.

    Args:
        function: what is done with a part. In a thread it starts with torch's defaults: gradients are on.
        parts: the parts. At most one more than there are threads is done before its result is asked for.
        threads: how many parts are done at once, at most ``MOST``; they share the threads that torch has here. With
            one, everything is done by the thread that iterates.
    """

    def __init__(self, function: Callable[[Part], Result], parts: Sequence[Part], threads: int) -> None:
        self.function, self.parts = function, parts
        self.threads = min(threads, len(parts), MOST)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Result]:
        if self.threads < 2:
            yield from map(self.function, self.parts)
            return
        stop, before = threading.Event(), torch.get_num_threads()

        def start() -> None:
            _here.stop = stop
            torch.set_num_threads(max(1, before // self.threads))  # of this thread, and of all that start later

        pool = ThreadPoolExecutor(self.threads, initializer=start)
        waiting: deque[Future[Result]] = deque()
        try:
            for part in self.parts:
                waiting.append(pool.submit(self.function, part))
                if len(waiting) > self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)
