"""The verb show: all that is known of a checkpoint, or results side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from loopprobe.cli.models import show_checkpoint
from loopprobe.cli.options import Out, Overwrite, Png, named, output_folder
from loopprobe.cli.probes import show as show_datasets
from loopprobe.errors import LoopprobeError
from loopprobe.support.extras import require_extra


def show(
    names: Annotated[
        list[str],
        typer.Argument(
            help="A checkpoint, by name or path; or results (.nc files, or folders of them), side by side.",
            autocompletion=named,
        ),
    ],
    out: Out = None,
    overwrite: Overwrite = False,
    png: Png = False,
) -> None:
    """Show all that is known of a checkpoint, or results side by side."""
    if files := _results(names):
        show_results(files, out, overwrite, png)
        return
    if len(names) > 1:
        raise LoopprobeError(f"show takes one checkpoint and {len(names)} are given: name one, or .nc files of results")
    if out is not None or overwrite or png:
        raise LoopprobeError("--out, --overwrite and --png go with results: drop them, or name .nc files")
    show_checkpoint(names[0])


def _results(names: list[str]) -> list[Path]:
    """The files of results among what is named, each once; none where checkpoints are named.

    Raises:
        LoopprobeError: some are results and some are not.
    """
    files: list[Path] = []
    others = []
    for path in map(Path, names):
        inside = sorted(one for one in path.glob("*.nc") if "-difference" not in one.stem) if path.is_dir() else []
        if path.suffix == ".nc" or inside:
            files += inside or [path]
        else:
            others.append(str(path))
    if files and others:
        raise LoopprobeError(f"{others[0]} is no file or folder of results and {files[0]} is: name results alone")
    return list({path.resolve(): path for path in files}.values())


def show_results(files: list[Path], out: Path | None, overwrite: bool, png: bool) -> None:
    """Show datasets in files: several of one probe side by side, with their paired differences.

    Raises:
        LoopprobeError: a file is no dataset of a probe, or they cannot stand side by side.
    """
    if png:
        require_extra("kaleido", "png", "PNG")
    from loopprobe.probes.dataset import read_dataset
    from loopprobe.show.figures.pages import require_png
    from loopprobe.show.group import Group

    group = Group([read_dataset(path) for path in files])
    group.require_together()
    if png:
        require_png()
    folder = output_folder(f"show-{group.probe}", out, overwrite)
    show_datasets(group, folder, png)


VERBS: dict[str, Callable[..., None]] = {"show": show}
