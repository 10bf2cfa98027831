"""The documentation: its code runs and gives what it shows, its commands exist, and its links lead somewhere."""

import doctest
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from loopprobe.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_SESSION = [page for page in PAGES if ">>> " in page.read_text() and page.name != "README.md"]
OF_THEIR_OWN = ("wrapping.md", "own_task.md")  # pages with tests of their own
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text() and page.name not in OF_THEIR_OWN]
CODE = re.compile(r"^    (loopprobe .*)$|`(loopprobe [a-z-]+(?: [^`]*)?)`", re.M)


def test_there_are_pages_with_code():
    assert len(WITH_SESSION) >= 6
    assert len(WITH_PYTHON) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SESSION, ids=lambda page: page.stem)
def test_a_session_gives_the_output_shown(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert (failed, tried >= 4) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def commands(text):
    """Command lines of loopprobe in a text, without comments, and without those that stand for others."""
    for found in CODE.finditer(text):
        line = (found[1] or found[2]).split("  #")[0].replace("\n", " ")
        if not re.search(r"[…|]|\b(NAME|FILE|N)\b", line):
            yield line.strip()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_exists_with_its_options(page):
    verbs = typer.main.get_command(app)
    for line in commands(page.read_text()):
        _, name, *arguments = shlex.split(line)
        verb = verbs if name.startswith("--") else verbs.get_command(None, name)
        assert verb is not None, line
        known = {option for each in verb.params for option in (*each.opts, *each.secondary_opts)} | {
            "--help",
            "--debug",
        }
        assert name in known or verb is not verbs, line
        assert {word.split("=")[0] for word in arguments if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_images_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_no_page_is_left_out_of_the_site():
    nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    for page in PAGES[1:]:
        assert f": {page.relative_to(ROOT / 'docs')}\n" in nav + "\n", page


@pytest.mark.slow
def test_what_the_site_writes_into_a_page_and_folds_away_is_markdown():
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    page = hooks["on_page_markdown"]("# A\n\n<!-- run: loopprobe list --markdown -->\n")
    assert page.startswith("# A\n")
    assert "| lr-b20-T10 | linear regression | 1 | 20 | 10 |" in page
    assert page.count('<details markdown="1">') == page.count("</details>") > 1
