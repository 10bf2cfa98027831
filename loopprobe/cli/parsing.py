"""What people type after options: numbers, ranges, tokens and words, and the checks of single values."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

from loopprobe.config.selection import absolute, parsed
from loopprobe.errors import LoopprobeError

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
    try:
        ranges = absolute(parsed(text, option))
    except LoopprobeError:
        ranges = None
    if ranges is None:
        raise LoopprobeError(
            f"{option} ({shorten(text, 60)!r}) must be whole numbers from 0: 10, or 5,10,20, or a rising range 5:31, "
            "or 5:31:2"
        )
    if (count := sum((one.stop - one.start - 1) // one.step + 1 for one in ranges)) > MOST_NUMBERS:
        raise LoopprobeError(
            f"{option} ({text!r}) is {count:,} numbers, the most are {MOST_NUMBERS:,}: narrow the range or give it "
            "a step, as in 0:1000:50"
        )
    return sorted({number for numbers in ranges for number in numbers})


def parse_choice(text: str | None, option: str) -> str | None:
    """A choice of loops, layers, heads or positions as it was typed, see ``config.selection``; None stays None.

    Raises:
        LoopprobeError: it is none.
    """
    if text is not None:
        parsed(text, option)
    return text


def parse_floats(text: str, option: str) -> tuple[float, ...]:
    """``-2,0,0.5`` as (-2.0, 0.0, 0.5).

    Raises:
        LoopprobeError: it is not that.
    """
    try:
        return tuple(float(word) for word in parse_words(text))
    except ValueError:
        raise LoopprobeError(
            f"{option} ({shorten(text, 60)!r}) must be numbers with commas between: change it"
        ) from None


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
