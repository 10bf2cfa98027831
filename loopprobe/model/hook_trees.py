"""Hook points that are made when somebody hooks them, and that belong to the thread that does.

A loop that nobody hooks passes one common set of points that never holds a hook, so that a model of any number of
loops, and a run of any number, costs nothing in hook points. A loop that somebody hooks gets points of its own: they
are kept for the loops of the training, and made anew in each run for loops beyond.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformer_lens.hook_points import HookPoint, LensHandle

from loopprobe.errors import LoopprobeError
from loopprobe.model.attached import Attached, Runs
from loopprobe.model.hook_points import Direction, HookLayout, LoopHookPoint, LoopHooks, full_name, split_name

KEPT_LOOPS = 1000  # at most so many loops keep the points that were made for them


class _Tree:
    """The points of one loop, or those outside the loop, in one thread: shared ones, but for those that are hooked."""

    def __init__(self, loop: int | None, hooks: Any, names: tuple[str, ...]) -> None:
        self.loop, self.hooks, self.names = loop, hooks, names
        self.points: dict[str, LoopHookPoint] = {}
        self.attached: dict[Attached, list[tuple[LoopHookPoint, LensHandle]]] = {}
        self.handed_out = False  # points that somebody holds must stay what is passed
        self.wanted: tuple[Any, Any] = (None, None)

    def point(self, local: str) -> LoopHookPoint:
        """The point of a name, of this tree's own from now on."""
        if local not in self.points:
            point = LoopHookPoint()
            point.name = full_name(self.loop, local)
            *parents, last = local.split(".")
            place: Any = self.hooks
            for parent in parents:
                place = place[int(parent)] if parent.isdigit() else getattr(place, parent)
            setattr(place, last, point)
            self.points[local] = point
        return self.points[local]

    def update(self, shared: tuple[Attached, ...], own: tuple[Attached, ...]) -> None:
        """Hold exactly these hooks."""
        if self.wanted[0] is shared and self.wanted[1] is own:
            return
        wanted = sorted((*shared, *own), key=lambda a: a.order)
        for gone in [a for a in self.attached if a not in wanted]:
            self.detach(gone)
        for a in wanted:
            if a not in self.attached:
                points = [self.point(local) for local in self.names if a.matches(self.loop, local)]
                self.attached[a] = [(p, p.add_hook(a.hook, a.dir, a.is_permanent, a.level, a.prepend)) for p in points]
        self.wanted = shared, own

    @property
    def is_idle(self) -> bool:
        """Tell whether nobody would miss this tree."""
        return not (self.handed_out or self.attached or any(p.ctx or p.has_hooks() for p in self.points.values()))

    @property
    def by_hand(self) -> list[Attached]:
        """The hooks that were added to points themselves, as hooks that can be attached to a copy."""
        known = {id(handle) for pairs in self.attached.values() for _, handle in pairs}
        found = []
        for local, point in self.points.items():
            sides: list[tuple[Direction, Any]] = [("fwd", point.fwd_hooks), ("bwd", point.bwd_hooks)]
            for direction, handle in ((side, handle) for side, handles in sides for handle in handles):
                if id(handle) not in known:
                    matches = lambda *at, here=(self.loop, local): at == here  # noqa: E731
                    found.append(Attached(str(point.name), matches, handle.user_hook, direction, handle.is_permanent))
        return found

    def detach(self, a: Attached) -> None:
        """Take a hook off its points."""
        for point, handle in self.attached.pop(a, ()):
            point.remove_handle(handle)
        self.wanted = (None, None)


class _Thread(threading.local):
    """The state of one thread: its trees, its hooks, the run that goes on, and the blocks that watch runs."""

    def __init__(self) -> None:
        self.trees: dict[int | None, _Tree] = {}
        self.attached: tuple[Attached, ...] = ()
        self.n_loops: int | None = None
        self.watching: list[Runs] = []


class HookTrees(Mapping[str, HookPoint]):
    """All hook points of a model by name, made when they are asked for.

    As a mapping it lists the points of the loops of the training, and of later loops whose points were asked for.

    Args:
        layout: of the model; it says which points there are, and how many loops were trained.
    """

    def __init__(self, layout: HookLayout) -> None:
        self.layout, self.n_loops = layout, layout.n_loops
        idle: dict[str, LoopHookPoint] = {}
        find = lambda local: idle.setdefault(local, LoopHookPoint())  # noqa: E731
        self.idle = layout.in_loop(find)
        self.local_names = tuple(idle)  # the names of one loop's points, in the order in which they are passed
        self.idle_once = layout.once(find)
        self.once_names = tuple(name for name in idle if name not in self.local_names)
        self._idle_points = idle
        self.shared: tuple[Attached, ...] = ()
        self.thread = _Thread()
        self.busy = 0  # hooks that are attached in any thread, and loops whose points were handed out
        self._lock = threading.Lock()

    # The points of a run

    def at(self, loop: int | None) -> Any:
        """Return the points that the model passes in a loop (LoopHooks), or outside of it (None: OnceHooks)."""
        state = self.thread
        tree = state.trees.get(loop)
        if tree is None:
            if not self._is_hooked(loop):
                return self.idle_once if loop is None else self.idle
            tree = self._tree(loop)
            if loop is None or loop < min(self.n_loops, KEPT_LOOPS):
                state.trees[loop] = tree
        tree.update(self.shared, state.attached)
        for a, points in tree.attached.items():
            a.reached = a.reached or bool(points)
        return tree.hooks

    def _is_hooked(self, loop: int | None) -> bool:
        names = self.once_names if loop is None else self.local_names
        return any(a.matches(loop, local) for a in (*self.shared, *self.thread.attached) for local in names)

    def _tree(self, loop: int | None) -> _Tree:
        find = self._idle_points.__getitem__
        if loop is None:
            return _Tree(None, self.layout.once(find), self.once_names)
        return _Tree(loop, self.layout.in_loop(find), self.local_names)

    @contextmanager
    def run(self, n_loops: int) -> Iterator[None]:
        """While it lasts, a run of so many loops goes on in this thread."""
        state = self.thread
        before, state.n_loops = state.n_loops, n_loops
        try:
            yield
            for runs in state.watching:
                runs.longest = max(runs.longest, n_loops)
        finally:
            state.n_loops = before

    @contextmanager
    def watch(self) -> Iterator[Runs]:
        """Note the runs that this thread brings to their end while the block lasts."""
        runs = Runs()
        self.thread.watching.append(runs)
        try:
            yield runs
        finally:
            self.thread.watching.remove(runs)

    @property
    def running(self) -> int | None:
        """The number of loops of the run that goes on in this thread; None outside a run."""
        return self.thread.n_loops

    # Attaching and detaching

    def attach(self, attached: Attached, *, every_thread: bool = False) -> None:
        """Attach a hook, in this thread or in all."""
        with self._lock:
            if every_thread:
                self.shared = (*self.shared, attached)
            else:
                self.thread.attached = (*self.thread.attached, attached)
            self.busy += 1

    def detach(self, gone: Callable[[Attached], bool]) -> None:
        """Detach the hooks of this thread, and those of all threads, for which ``gone`` holds."""
        state = self.thread
        with self._lock:
            leaving = [a for a in (*self.shared, *state.attached) if gone(a)]
            if not leaving:
                return
            self.shared = tuple(a for a in self.shared if a not in leaving)
            state.attached = tuple(a for a in state.attached if a not in leaving)
            self.busy -= len(leaving)
        for tree in list(state.trees.values()):
            for a in leaving:
                tree.detach(a)
            if tree.is_idle:
                del state.trees[tree.loop]

    # As a mapping

    def __getitem__(self, name: str) -> LoopHookPoint:
        loop, _, local = split_name(name)
        if local not in (self.once_names if loop is None else self.local_names):
            raise KeyError(name)
        state = self.thread
        if loop not in state.trees:
            state.trees[loop] = self._tree(loop)
        tree = state.trees[loop]
        if not tree.handed_out:
            tree.handed_out = True
            self.busy += 1
        tree.update(self.shared, state.attached)
        return tree.point(local)

    def __contains__(self, name: object) -> bool:
        loop, _, local = split_name(str(name))
        return local in (self.once_names if loop is None else self.local_names)

    def __iter__(self) -> Iterator[str]:
        yield from self.once_names
        later = sorted(loop for loop in self.thread.trees if loop is not None and loop >= self.n_loops)
        for loop in itertools.chain(range(self.n_loops), later):
            for local in self.local_names:
                yield full_name(loop, local)

    def __len__(self) -> int:
        later = sum(loop is not None and loop >= self.n_loops for loop in self.thread.trees)
        return len(self.once_names) + (self.n_loops + later) * len(self.local_names)

    @property
    def made(self) -> list[LoopHookPoint]:
        """The points of this thread that exist."""
        for tree in self.thread.trees.values():
            tree.update(self.shared, self.thread.attached)
        return [point for tree in self.thread.trees.values() for point in tree.points.values()]

    @property
    def is_hooked(self) -> bool:
        """Tell whether a hook is attached that acts in this thread."""
        return bool(self.shared or self.thread.attached) or any(point.has_hooks() for point in self.made)

    @property
    def are_alike(self) -> bool:
        """Tell whether the hooks that act in this thread are on the same points in every loop."""
        attached = [*self.shared, *self.thread.attached]
        attached += [a for tree in self.thread.trees.values() for a in tree.by_hand]
        loops = [*range(min(self.n_loops, KEPT_LOOPS)), self.n_loops, sys.maxsize]
        for a in attached:
            found = {tuple(a.matches(loop, local) for local in self.local_names) for loop in loops}
            if len(found) > 1:
                return False
            is_anywhere = any(next(iter(found))) or any(a.matches(None, name) for name in self.once_names)
            if not is_anywhere:  # in a loop beyond those of the training
                return False
        return True

    # Copies

    def __deepcopy__(self, memo: dict[int, Any]) -> HookTrees:
        """A copy has the hooks that act in this thread, which then act in all threads of the copy."""
        copied = HookTrees(self.layout)
        everything = [*self.shared, *self.thread.attached]
        for tree in self.thread.trees.values():
            everything += tree.by_hand
        copied.shared = tuple(sorted(everything, key=lambda a: a.order))
        copied.busy = len(copied.shared)
        return copied

    def __getstate__(self) -> dict[str, HookLayout]:
        if self.is_hooked:
            raise LoopprobeError(
                "a model with hooks attached cannot be saved: leave the `with` block, or call model.reset_hooks()"
            )
        return {"layout": self.layout}

    def __setstate__(self, state: dict[str, HookLayout]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Loops(Sequence[LoopHooks]):
    """The hook points of the loops, each made whole when it is asked for."""

    def __init__(self, trees: HookTrees) -> None:
        self._trees = trees

    def __len__(self) -> int:
        return self._trees.n_loops

    def __getitem__(self, loop: int) -> LoopHooks:  # type: ignore[override]
        loop = loop if loop >= 0 else len(self) + loop
        if loop < 0:
            raise IndexError(f"loop {loop - len(self)} of {len(self)}")
        for local in self._trees.local_names:
            self._trees[full_name(loop, local)]
        return self._trees.at(loop)

    def __iter__(self) -> Iterator[LoopHooks]:
        return (self[loop] for loop in range(len(self)))
