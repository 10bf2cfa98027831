"""Selections of activations by their names, and of loops of runs that have not started; see ``config.selection``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from transformer_lens.utilities import get_act_name

from loopprobe.config.selection import Numbers, Part, absolute, listed, parts_of, ranges, resolve
from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import LoopHookPoint, short_name, split_name

Names = str | Collection[str] | Callable[[str], bool] | None  # of activations; None for all


MOST_LOOPS = 10_000_000  # that may be named one by one


class LoopChoice:
    """Loops of a run that has not started yet, so that its length is not known.

    Args:
        loops: the choice, from 0; None for all.

    Attributes:
        is_relative: whether the choice depends on how many loops the run has.
        known: the loops, as far as they are known without a run; None where any may be meant.
    """

    def __init__(self, loops: Numbers) -> None:
        self.loops = None if isinstance(loops, slice) and loops == slice(None) else listed(loops)
        self.given: list[Part] | None = parts_of(self.loops, "loop")
        self._resolved: dict[int, Collection[int]] = {}
        if self.given == []:
            raise LoopprobeError("no loop is chosen: name at least one, or None for all")
        named = None if self.given is None else absolute(self.given)
        self.is_relative = self.given is not None and named is None
        if (count := sum(map(len, named or ()))) > MOST_LOOPS:
            raise LoopprobeError(f"loops ({loops!r}) are {count:,}, the most are {MOST_LOOPS:,}: narrow the range")
        self.known = None if named is None else sorted({loop for part in named for loop in part})

    def has(self, loop: int, n_loops: int | None) -> bool:
        """Tell whether a loop is meant in a run of ``n_loops`` (None: outside a run, where no choice is relative)."""
        if self.given is None:
            return True
        if self.is_relative:
            if n_loops is None:
                raise LoopprobeError(
                    f"loops ({self.given!r}) count from the end of a run, and model.step is none: count from 0"
                )
            return loop in self._of_run(n_loops)
        return loop in (self.known or ())

    def meant_at(self, hook: LoopHookPoint, n_loops: int | None) -> bool:
        """Tell whether a point is meant in a run of ``n_loops``; points outside the loop always are."""
        loop = split_name(str(hook.name))[0]
        return loop is None or self.has(loop, n_loops)

    def _of_run(self, n_loops: int) -> Collection[int]:
        """The loops of a run of so many."""
        if n_loops not in self._resolved:
            self._resolved[n_loops] = resolve(self.loops, n_loops, "loop") or ()
        return self._resolved[n_loops]

    def require_reached(self, longest: int) -> None:
        """Raise LoopprobeError where runs, the longest of so many loops (0: none), have not come to a named loop."""
        left = [loop for loop in self.known or () if loop >= longest]
        if longest and left:
            raise LoopprobeError(
                f"loop {left[0]} was never reached: the longest run had {longest} loops, 0 to {longest - 1}; "
                "choose loops of the run, or give it more n_loops"
            )


def selector(names: Names, loops: Collection[int] | None, layers: Numbers, model: Any) -> Callable[[str], bool]:
    """A predicate on full hook names.

    Args:
        names: None for all; short names (``"resid_post"``, ``"pattern"``; ``"z"`` is the state, ``"attn_z"`` the heads'
            output), names without a loop (``"blocks.0.hook_resid_post"``), full names, or a predicate of your own.
        loops: iterations, from 0; points that are passed once, before the loops, are chosen whatever it says.
        layers: layers, see ``selection``; points that belong to no layer are chosen whatever it says.
        model: whose points they are.

    Raises:
        LoopprobeError: a name that no point has, or layers that are not there.
    """
    chosen_layers = resolve(layers, model.sizes.n_layers, "layer")
    wanted: Callable[[str], bool]
    if callable(names):
        wanted = names
    elif names is None:
        wanted = _any_name
    else:
        asked = {names} if isinstance(names, str) else set(names)
        known = [*model.hook_trees.once_names, *model.hook_trees.local_names]
        for name in asked:
            local = split_name(name)[2]
            if not any(local in _aliases(each) for each in known):
                short = sorted({short_name(each) for each in known})
                raise LoopprobeError(f"no hook point is called {name!r}: choose from {', '.join(short)}")
        wanted = lambda name: not asked.isdisjoint(_aliases(name))  # noqa: E731

    def matches(name: str) -> bool:
        loop, layer, _ = split_name(name)
        return (
            (loops is None or loop is None or loop in loops)
            and (chosen_layers is None or layer is None or layer in chosen_layers)
            and bool(wanted(name))
        )

    matches.label = f"{names!r}" + ("" if loops is None else f" of loops {ranges(sorted(loops))}")  # type: ignore[attr-defined]
    return matches


def activations_of(model: Any) -> set[str]:
    """Return the short names of the activations that a model shows in every loop, such as ``attn_z``."""
    return {short_name(local) for local in model.hook_trees.local_names}


def require_activations(model: Any, names: Iterable[str], what: str, of: Collection[str] | None = None) -> None:
    """Raise LoopprobeError where a model does not show an activation that is needed.

    Args:
        model: the model.
        names: the short names of what is needed, such as ``attn_z``.
        what: what needs them, for the message.
        of: the short names to choose from instead; None: all that it shows.
    """
    known = activations_of(model)
    if missing := [name for name in names if name not in known]:
        there = ", ".join(sorted(known if of is None else known & set(of)))
        place = get_act_name("z" if missing[0] == "attn_z" else missing[0], 0).removeprefix("blocks.0.")
        raise LoopprobeError(
            f"{what} needs {missing[0]}, which the model does not show: {f'choose from {there}, or ' if there else ''}"
            f"name its place in the module, loopprobe.wrap(…, sites={{{place!r}: …}})"
        )


def _any_name(name: str) -> bool:
    return True


def _aliases(name: str) -> tuple[str, str, str]:
    """List the names of a point: in full, without its loop, in short."""
    return name, split_name(name)[2], short_name(name)
