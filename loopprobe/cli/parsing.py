"""What people type after options: numbers, ranges, tokens and words, and the checks of single values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from loopprobe.errors import LoopprobeError
from loopprobe.types import Positions as Tokens

MOST_NUMBERS = 10_000  # that one option may name


def parse_numbers(text: str, option: str) -> list[int]:
    """``10``, ``5,10,20``, ``0:31`` (both ends included), ``0:30:5``, or several of these with commas between.

    Args:
        text: what was typed.
        option: its name, for the error.

    Returns:
        The numbers in rising order, each once.

    Raises:
        LoopprobeError: it is none of these, a range runs backwards, or there are more than ``MOST_NUMBERS``.
    """
    ranges = [_range(part, text, option) for part in text.split(",")]
    if (count := sum(map(_length, ranges))) > MOST_NUMBERS:
        raise LoopprobeError(
            f"{option} ({text!r}) is {count:,} numbers, the most are {MOST_NUMBERS:,}: narrow the range or give it "
            "a step, as in 0:1000:50"
        )
    return sorted({number for numbers in ranges for number in numbers})


def _range(part: str, text: str, option: str) -> range:
    try:
        start, stop, step = (*(int(bound) for bound in part.split(":")), None, None)[:3]
        assert start is not None
        numbers = range(start, (start if stop is None else stop) + 1, 1 if step is None else step)
        if part.count(":") > 2 or start < 0 or (step is not None and step < 1) or not numbers:
            raise ValueError
    except ValueError:  # also: more digits than Python reads
        raise LoopprobeError(
            f"{option} ({shorten(text, 60)!r}) must be whole numbers from 0: 10, or 5,10,20, or a rising "
            "range 5:31, or 5:31:2"
        ) from None
    return numbers


def _length(numbers: range) -> int:
    """Count the numbers of a range, also where ``len`` overflows."""
    return (numbers.stop - numbers.start - 1) // numbers.step + 1


def parse_positions(text: str | None, option: str = "--positions") -> Tokens | None:
    """Tokens: whole numbers, negative ones from the end, ranges of those from 0, and ``query``; None stays None."""
    if text is None:
        return None
    positions: list[Any] = []
    for part in (part.strip() for part in text.split(",")):
        if part == "query":
            positions.append("query")
            continue
        if re.fullmatch(r"-\d{1,9}", part):
            positions.append(int(part))
            continue
        try:
            positions += parse_numbers(part, option)
        except LoopprobeError:
            raise LoopprobeError(
                f"{option} ({shorten(text, 60)!r}) must be tokens: 0,5 or 0:20, -1 for the last, or query"
            ) from None
    return tuple(dict.fromkeys(positions))


def parse_words(text: str) -> tuple[str, ...]:
    """``a,b`` as ("a", "b")."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def one_of(value: str, choices: Sequence[str], option: str) -> str:
    """The value, where it is among the choices; asked before anything heavy is imported.

    Raises:
        LoopprobeError: it is not.
    """
    if value not in choices:
        raise LoopprobeError(f"{option} ({value!r}) must be {', '.join(choices[:-1])} or {choices[-1]}: choose one")
    return value


def at_least(value: float | None, least: float, option: str) -> None:
    """Raise LoopprobeError where a number is too small; None passes."""
    if value is not None and not value >= least:
        raise LoopprobeError(f"{option} ({value}) must be at least {least}: raise it")
