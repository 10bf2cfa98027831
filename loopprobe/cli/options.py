"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loopprobe.errors import LoopprobeError

Ckpt = Annotated[list[str] | None, typer.Option("--ckpt", help="Checkpoint name or path; repeat for several.")]
Prompts = Annotated[int, typer.Option(help="Held-out prompts.")]
Seed = Annotated[int, typer.Option(help="Seed of the held-out prompts.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer prompts and options, as the questions say.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the best that is here.")]
Out = Annotated[Path | None, typer.Option(help="Output folder; by default a new one under results/.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Empty the output folder first if it exists.")]
Png = Annotated[bool, typer.Option("--png", help="Also write the figure as PNG (needs loopprobe[png] and a Chrome).")]


def parse_numbers(text: str, option: str) -> list[int]:
    """``10``, ``5,10,20``, ``0:31`` (both ends included), ``0:30:5``, or several of these with commas between."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            bounds = [int(bound) for bound in part.split(":")]
            if len(bounds) == 1:
                numbers += bounds
            else:
                start, stop, stride = (*bounds, 1)[:3]
                numbers += list(range(start, stop + 1, stride))
        if not numbers or min(numbers) < 0:
            raise ValueError
    except ValueError:
        raise LoopprobeError(
            f"{option} ({text!r}) must be whole numbers from 0: 10, or 5,10,20, or a range 0:31"
        ) from None
    return sorted(set(numbers))


def parse_words(text: str) -> tuple[str, ...]:
    """``a,b`` as ("a", "b")."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
