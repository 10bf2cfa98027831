"""Places of the study's questions and of answers that ship: an installed wheel, or probes/ in the clone; no torch."""

from __future__ import annotations

import re
from pathlib import Path

from loopprobe.errors import LoopprobeError


def study_folder() -> Path:
    """Return the folder of the study's saved questions."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_questions"
    return installed if installed.is_dir() else package.parent / "probes"


def shipped_answer(question: str, model: str) -> Path:
    """Return where the answer of a model would lie whose weights do not ship, beside the study's questions."""
    return study_folder() / "answers" / question / f"{model}.nc"


def toml_files(folder: Path) -> list[Path]:
    """Return the files of the saved questions in a folder, in the order of their names and the numbers in them.

    Grid files are left out.

    Raises:
        LoopprobeError: there are none.
    """
    paths = [path for path in sorted(folder.glob("*.toml"), key=_in_order) if not path.stem.endswith("_models")]
    if not paths:
        raise LoopprobeError(f"{folder} holds no saved questions: give a folder with TOML files of them")
    return paths


def _in_order(path: Path) -> list[tuple[int, str]]:
    """The parts of a name, numbers by their size: r2 stands before r10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
