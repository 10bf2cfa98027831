"""The one language in which loops, layers, heads and positions are chosen, in Python, in files and on the command line.

    3            a number                      -1, last    the last one
    0:4          a range, both ends included   0:8:2       with a step; 5: and :5 reach to the end
    query, …     a name, where names are known all         all of them
    0,4:6,last   several of these

In Python numbers, sequences of all these, and slices are choices too; a slice leaves out its end, as slices do. Layers,
heads and positions count from 0. So do the loops of hooks, caches and edits; loops that a probe is told, and that its
datasets show, count from 1, as loops that are done.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten

from loopprobe.errors import LoopprobeError

Choice = int | str | tuple[int | str, ...]  # in a configuration; None there stands for all
Numbers = int | str | slice | Iterable[int | str] | None  # in a call; None for all
NAME = re.compile(r"[^\W\d][\w -]*")
LONGEST = 18  # digits of a number


@dataclass(frozen=True)
class Span:
    """A range whose ends both belong to it; an end that is None is that of the axis."""

    start: int | None
    stop: int | None
    step: int = 1


Part = int | str | Span | slice


def parsed(text: str, what: str) -> list[Part]:
    """The parts of a choice that somebody typed.

    Args:
        text: numbers, ranges and names with commas between.
        what: what is chosen, for the message: ``loop``, ``position``, or the name of an option.

    Raises:
        LoopprobeError: it is none of these.
    """
    return [_part(part.strip(), text, what) for part in text.split(",")]


def _part(part: str, text: str, what: str) -> Part:
    numbers = part.split(":")
    whole = all(re.fullmatch(rf" *-?\d{{1,{LONGEST}}} *| *", number) for number in numbers)
    if whole and len(numbers) == 1 and part:
        return int(part)
    if whole and len(numbers) in (2, 3):
        start, stop = (int(number) if number.strip() else None for number in numbers[:2])
        step = int(numbers[2]) if len(numbers) == 3 and numbers[2].strip() else 1
        backwards = start is not None and stop is not None and (start < 0) == (stop < 0) and start > stop
        if step > 0 and not backwards and (len(numbers) < 3 or numbers[2].strip()):
            return Span(start, stop, step)
    elif NAME.fullmatch(part):
        return part
    raise LoopprobeError(
        f"{what} ({shorten(text, 60)!r}) must be numbers such as 3 or -1 (the last), rising ranges such as 0:4 (both "
        "ends), or names, with commas between: change it"
    )


def parts_of(numbers: Numbers, what: str) -> list[Part] | None:
    """The parts of any choice; None for all.

    Raises:
        LoopprobeError: it is no choice.
    """
    if numbers is None:
        return None
    if isinstance(numbers, slice):
        return [numbers]
    given = [numbers] if isinstance(numbers, str) or not isinstance(numbers, Iterable) else list(numbers)
    parts: list[Part] = []
    for one in given:
        if isinstance(one, str):
            parts += parsed(one, what)
            continue
        try:
            if isinstance(one, bool):
                raise TypeError
            parts.append(one.__index__())
        except (TypeError, AttributeError):
            raise LoopprobeError(
                f"{what}s ({numbers!r}) must be whole numbers: give one, several, a range, a slice, or text such as 0:4"
            ) from None
    return None if "all" in parts else parts


def listed(numbers: Numbers) -> Numbers:
    """The same choice, which can be read again: a list where it is a generator."""
    return list(numbers) if isinstance(numbers, Iterable) and not isinstance(numbers, str) else numbers


def resolve(
    numbers: Numbers,
    size: int,
    what: str,
    *,
    first: int = 0,
    names: Mapping[str, Sequence[int]] | None = None,
    end: int | None = None,
) -> list[int] | None:
    """The chosen places of an axis in the order given, each once, from 0.

    Args:
        numbers: the choice; None for all.
        size: how many there are.
        what: what they are, for messages: ``loop``, ``layer``, ``head`` or ``position``.
        first: what the first of them is called, 0 or 1.
        names: further names with their places; None: there are none.
        end: where ranges without an end stop, short of it; None: ``size``.

    Returns:
        Places from 0 to ``size - 1``; None for all.

    Raises:
        LoopprobeError: a number or name that is not there or is no whole number, or nothing is chosen.
    """
    parts = parts_of(numbers, what)
    if parts is None:
        return None
    known = {"last": [size - 1], **(names or {})}
    chosen = [place for part in parts for place in _places(part, size, what, first, known, end or size)]
    if not chosen:
        raise LoopprobeError(f"no {what} is chosen ({numbers!r}): name at least one of {first} to {size - 1 + first}")
    return list(dict.fromkeys(chosen))


def _places(
    part: Part, size: int, what: str, first: int, names: Mapping[str, Sequence[int]], end: int
) -> Iterable[int]:
    """The places of one part."""
    if isinstance(part, slice):
        return range(size)[part]
    if isinstance(part, str):
        if part not in names:
            hint = "" if len(names) > 1 else f"; names of {what}s are known where prompts are, as in probes"
            raise LoopprobeError(
                f"no {what} is called {part!r}: choose from {', '.join(names)}, numbers and ranges{hint}"
            )
        return names[part]
    if isinstance(part, int):
        return [_place(part, size, what, first)]
    start = 0 if part.start is None else _place(part.start, size, what, first)
    stop = end - 1 if part.stop is None else _place(part.stop, size, what, first)
    return range(start, stop + 1, part.step)


def _place(number: int, size: int, what: str, first: int) -> int:
    """The place of a number from 0."""
    if not (-size <= number < 0 or first <= number < size + first):
        raise LoopprobeError(
            f"{what} {number} must be {'below' if first == 0 else 'from 1 and at most'} {size}: there are {size} "
            f"{what}s, {first} to {size - 1 + first}, or -{size} to -1 from the end"
        )
    return number + size if number < 0 else number - first


def absolute(parts: Iterable[Part]) -> list[range] | None:
    """Parts that do not depend on how many there are, as Python's ranges; None where one of them does."""
    made = []
    for part in parts:
        span = Span(part, part) if isinstance(part, int) else part
        if not isinstance(span, Span) or span.stop is None or min(span.start or 0, span.stop) < 0:
            return None
        made.append(range(span.start or 0, span.stop + 1, span.step))
    return made


def ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 → "0–2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"
