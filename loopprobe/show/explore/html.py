"""Pages in the hand: shown in a notebook, saved to a file, opened in a browser."""

from __future__ import annotations

import html
import tempfile
import webbrowser
from pathlib import Path

from loopprobe.probes.dataset import writing

HEIGHT = 900  # pixels of a page within a notebook


class Html:
    """A whole page, made when it is asked for."""

    @property
    def title(self) -> str:
        """What the page shows."""
        raise NotImplementedError

    def html(self) -> str:
        """Return the page."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """Show the page in a notebook, within a frame of its own."""
        return (
            f'<iframe srcdoc="{html.escape(self.html(), quote=True)}" title="{html.escape(self.title)}" width="100%" '
            f'height="{HEIGHT}" style="border: 0"></iframe>'
        )

    def save(self, path: Path | str) -> Path:
        """Write the page to a file, whole or not at all; it needs no other file and no network.

        Raises:
            LoopprobeError: it cannot be written.
        """
        target = Path(path)
        page = self.html()
        with writing(target) as partial:
            partial.write_text(page, encoding="utf-8")
        return target

    def show(self) -> None:
        """Show the page: in a notebook within it, elsewhere as a temporary file in a browser."""
        from rich.console import Console

        if Console().is_jupyter:
            from IPython.display import display

            display(self)
            return
        folder = Path(tempfile.mkdtemp(prefix="loopprobe-"))
        webbrowser.open(self.save(folder / "explore.html").as_uri())


class Page(Html):
    """A page that is made already.

    Args:
        title: of the page.
        content: the page.
    """

    def __init__(self, title: str, content: str) -> None:
        self._title, self.content = title, content

    @property
    def title(self) -> str:
        """What the page shows."""
        return self._title

    def html(self) -> str:
        """Return the page."""
        return self.content
