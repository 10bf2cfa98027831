"""Where the questions of the study lie: inside an installed wheel, or in probes/ at the top of the clone. No torch."""

from __future__ import annotations

from pathlib import Path

from loopprobe.errors import LoopprobeError


def study_folder() -> Path:
    """The folder of the study's saved questions."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_questions"
    return installed if installed.is_dir() else package.parent / "probes"


def toml_files(folder: Path) -> list[Path]:
    """The files of the saved questions in a folder, grid files left out, in the order of their names.

    Raises:
        LoopprobeError: there are none.
    """
    paths = [path for path in sorted(folder.glob("*.toml")) if not path.stem.endswith("_models")]
    if not paths:
        raise LoopprobeError(f"{folder} holds no saved questions: give a folder with TOML files of them")
    return paths
