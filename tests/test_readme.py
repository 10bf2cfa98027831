"""README's session gives the output that README shows, and its commands are those of CI."""

import doctest
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_session_gives_the_output_shown():
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert (failed, tried >= 8) == (0, True)


def test_ci_runs_the_two_commands():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for command in ("pip install -e . && loopprobe mask --mode first --n 10", 'pip install -e ".[dev]" && pytest'):
        assert f"    {command}\n" in readme
        for part in command.split(" && "):
            assert part.removeprefix("pip install ") in ci


def test_the_table_of_shipped_models_is_that_of_their_records():
    readme = (ROOT / "README.md").read_text()
    shipped = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/config.json"))
    assert shipped
    for folder in shipped:
        record = json.loads((folder / "config.json").read_text())
        row = next((line for line in readme.splitlines() if line.startswith(f"| `{folder.name}` |")), "")
        evaluation = record["evaluation"]
        for mean, low, high in zip(*(evaluation[key] for key in ("error", "error_low", "error_high")), strict=True):
            assert f" {mean:.2g} [{low:.2g}, {high:.2g}] " in row, folder.name
        assert f" {record['step']:,} steps " in row
