"""README's session gives the output that README shows, and its commands are those of CI."""

import doctest
from pathlib import Path

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
