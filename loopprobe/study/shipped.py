"""Places of the study's questions: an installed wheel, or probes/ at the top of the clone; imports no torch."""

from __future__ import annotations

from pathlib import Path

from loopprobe.errors import LoopprobeError


def study_folder() -> Path:
    """Return the folder of the study's saved questions."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_questions"
    return installed if installed.is_dir() else package.parent / "probes"


def toml_files(folder: Path) -> list[Path]:
    """Return the files of the saved questions in a folder, in the order of their names, without grid files.

    Raises:
        LoopprobeError: there are none.
    """
    paths = [path for path in sorted(folder.glob("*.toml")) if not path.stem.endswith("_models")]
    if not paths:
        raise LoopprobeError(f"{folder} holds no saved questions: give a folder with TOML files of them")
    return paths
