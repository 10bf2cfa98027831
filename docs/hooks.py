"""Hooks of mkdocs: what the package itself can say is written into the pages when the site is built."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMAND = re.compile(r"<!-- run: (.+?) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every comment that names a module to run, with its arguments, by what it prints.

    What is folded away is Markdown too, which other readers of these pages take for granted.
    """
    whole = COMMAND.sub(lambda found: _run(*shlex.split(found[1])), markdown)
    return whole.replace("<details>", '<details markdown="1">')


def _run(module: str, *arguments: str) -> str:
    """Return what a module prints that is run from the top of the repository, without a title of its own."""
    command = [sys.executable, "-m", module, *arguments]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return re.sub(r"\A# .*\n", "", printed)
