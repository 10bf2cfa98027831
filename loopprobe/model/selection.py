"""Selections of activations, loops, layers, heads and positions: what people type, resolved in one place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import short_name, split_name

Names = str | Collection[str] | Callable[[str], bool] | None  # of activations; None for all
Numbers = int | slice | Iterable[int] | None  # 3, -1, slice(2), range(5), [0, 2], a generator; None for all


def resolve(numbers: Numbers, size: int, what: str) -> list[int] | None:
    """The chosen numbers of an axis in the order given, each once, negative ones counted from the end.

    Args:
        numbers: the choice; None for all.
        size: how many there are.
        what: what they are, for messages: ``loop``, ``layer``, ``head`` or ``position``.

    Returns:
        Numbers from 0 to ``size - 1``; None for all.

    Raises:
        LoopprobeError: a number that is not there or is no whole number, or nothing is chosen.
    """
    if numbers is None:
        return None
    if isinstance(numbers, slice):
        chosen = list(range(size)[numbers])
    else:
        given = as_numbers(numbers, what)
        for number in given:
            if not -size <= number < size:
                raise LoopprobeError(
                    f"{what} {number} must be below {size}: there are {size} {what}s, 0 to {size - 1}, "
                    f"or -{size} to -1 from the end"
                )
        chosen = list(dict.fromkeys(number % size for number in given))
    if not chosen:
        raise LoopprobeError(f"no {what} is chosen ({numbers!r}): name at least one of 0 to {size - 1}")
    return chosen


def as_numbers(numbers: int | Iterable[int], what: str) -> list[int]:
    """One whole number or several as a list, negative ones as they are; LoopprobeError where they are none."""
    try:
        given = list(numbers) if isinstance(numbers, Iterable) else [numbers]
        if any(isinstance(number, bool) for number in given):
            raise TypeError
        return [number.__index__() for number in given]
    except (TypeError, AttributeError):
        raise LoopprobeError(
            f"{what}s ({numbers!r}) must be whole numbers: give one, several, a range or a slice"
        ) from None


class LoopChoice:
    """Loops of a run that has not started yet, so that its length is not known.

    Args:
        loops: the choice; None for all.
    """

    def __init__(self, loops: Numbers) -> None:
        self.given: list[int] | slice | None
        self.given = loops if loops is None or isinstance(loops, slice) else as_numbers(loops, "loop")
        if self.given == []:
            raise LoopprobeError("no loop is chosen: name at least one, or None for all")

    @property
    def is_relative(self) -> bool:
        """Tell whether the choice depends on how many loops the run has."""
        return isinstance(self.given, slice) or any(loop < 0 for loop in self.given or ())

    @property
    def known(self) -> list[int] | None:
        """The loops, as far as they are known without a run; None where any may be meant."""
        return None if self.given is None or isinstance(self.given, slice) or self.is_relative else self.given

    def has(self, loop: int, n_loops: int | None) -> bool:
        """Tell whether a loop is meant in a run of ``n_loops`` (None: outside a run, where no choice is relative)."""
        if self.given is None:
            return True
        if self.is_relative:
            if n_loops is None:
                raise LoopprobeError(
                    f"loops ({self.given!r}) count from the end of a run, and model.step is none: count from 0"
                )
            return loop in (resolve(self.given, n_loops, "loop") or ())
        return loop in (self.known or ())

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


def _any_name(name: str) -> bool:
    return True


def _aliases(name: str) -> tuple[str, str, str]:
    """List the names of a point: in full, without its loop, in short."""
    return name, split_name(name)[2], short_name(name)


def ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 → "0–2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"
