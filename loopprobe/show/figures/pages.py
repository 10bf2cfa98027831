"""Figures as files: pages, plotly's script beside several of them, and pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import writing
from loopprobe.show.page import figure_html, render
from loopprobe.support.extras import require_extra
from loopprobe.types import Progress


def write_html(figure: go.Figure, path: Path, *, alone: bool = True) -> None:
    """Write an interactive page, whole or not at all; a slider does not play by itself.

    In a narrow window its panels stand below one another.

    Args:
        figure: the figure to write.
        path: the path of the page.
        alone: whether the page holds plotly's script, so that it can be sent by itself; else plotly.min.js must lie
            beside it.

    Raises:
        LoopprobeError: the page cannot be written.
    """
    title = re.sub("<[^>]*>", " ", figure.layout.title.text or path.stem)
    page = render("figure.html", {"title": title, "figure": figure_html(figure, path.stem), "alone": alone})
    with writing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def write_figures(
    figures: Mapping[str, go.Figure], folder: Path, *, png: bool = False, progress: Progress = lambda steps: steps
) -> list[Path]:
    """Write the figures of a folder.

    A single page holds plotly's script itself. Several pages share one file of it beside them.

    Args:
        figures: the figures by the stem of their files.
        folder: the folder to write to; it must exist.
        png: write pictures too.
        progress: shows the figures that are written.

    Returns:
        The paths that were written.

    Raises:
        LoopprobeError: a file cannot be written, or no PNG can be made.
    """
    alone = len(figures) == 1
    if not alone and figures:
        write_script(folder)
    paths = []
    for stem, figure in progress(list(figures.items())):
        write_html(figure, folder / f"{stem}.html", alone=alone)
        paths.append(folder / f"{stem}.html")
        if png:
            write_png(figure, folder / f"{stem}.png")
            paths.append(folder / f"{stem}.png")
    return paths


def write_script(folder: Path) -> None:
    """Write plotly's script into a folder, unless it is already there."""
    script, path = get_plotlyjs().encode(), folder / "plotly.min.js"
    if path.is_file() and path.read_bytes() == script:
        return
    with writing(path) as partial:
        partial.write_bytes(script)


def require_png() -> None:
    """Raise LoopprobeError if no PNG can be made because kaleido or a Chrome is not installed."""
    _png(go.Figure(), width=16, height=16)


def write_png(figure: go.Figure, path: Path) -> None:
    """Write a picture with kaleido and a Chrome.

    Raises:
        LoopprobeError: one of these is not installed, or the picture cannot be written.
    """
    picture = _png(figure, width=1100, height=max(520, figure.layout.height or 0), scale=2)
    with writing(path) as partial:
        partial.write_bytes(picture)


def _png(figure: go.Figure, **size: int) -> bytes:
    require_extra("kaleido", "png", "PNG")
    try:
        return figure.to_image("png", **size)
    except Exception as error:  # kaleido and choreographer raise many kinds
        if "chrome" not in str(error).lower():
            raise
        if named := os.environ.get("BROWSER_PATH"):
            reason = str((*error.args, "no reason given")[0]).strip().rstrip(".")
            raise LoopprobeError(
                f"{named}, which BROWSER_PATH names, draws no PNG ({reason}): see what it lacks with --version"
            ) from None
        raise LoopprobeError(
            "PNG needs a Chrome or Chromium: install one, or name it in the environment variable BROWSER_PATH"
        ) from None
