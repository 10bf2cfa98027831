"""README's session gives the output that README shows, and its commands are those of CI."""

import doctest
from pathlib import Path

from loopprobe.show.tables import checkpoint_tables, markdown
from loopprobe.store.checkpoint_file import read_json

ROOT = Path(__file__).resolve().parents[1]


def test_the_session_gives_the_output_shown():
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert (failed, tried >= 8) == (0, True)


def test_ci_runs_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    code = [line.split("#")[0].strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    first, second = "pip install -e . && loopprobe mask --mode first --n 10", 'pip install -e ".[dev]" && pytest'
    for command in (first, second):
        assert f"    {command}\n" in readme
    assert "pip install -q -e ." in code
    assert 'time (cd "$results" && loopprobe mask --mode first --n 10)' in code
    assert code.index('pip install -q -e ".[dev]"') < code.index('tests "default tests"')
    assert 'pytest "$@" | tee "$venv/log" || status=$?' in code


def test_the_table_of_shipped_models_is_that_of_the_command():
    shipped = {path.parent.name: path.parent for path in sorted((ROOT / "checkpoints").glob("*/config.json"))}
    tables = [*map(markdown, checkpoint_tables((name, *read_json(folder)) for name, folder in shipped.items()))]
    assert sum(table.count("\n| ") - 2 for table in tables) == len(shipped)
    assert "\n" + "\n".join(tables) + "\n" in (ROOT / "README.md").read_text(), "run `loopprobe list --markdown`"
