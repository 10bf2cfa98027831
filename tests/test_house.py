"""The rules of the house: data flows one way, modules stay small, public names load lazily."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest

import loopprobe

PACKAGE = Path(loopprobe.__file__).parent
ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))


def test_the_contracts_between_modules_hold(capsys):
    """Every kind of import counts: relative ones, those of ``__init__``, and those inside functions."""
    from importlinter.application.use_cases import lint_imports
    from importlinter.configuration import configure

    configure()
    kept = lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None)
    assert kept, capsys.readouterr().out


def test_the_house_has_few_rooms_and_contributing_shows_them():
    names, arrows = house.rooms(), house.imports()
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(names)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "_version", "errors", "types"}
    assert len(names) <= 13
    assert sum(map(len, arrows.values())) <= 80
    back = {(room, other) for i, room in enumerate(names) for other in arrows[room] if other not in names[:i]}
    assert not back
    assert house.written() == house.drawn(), "python tests/house.py draws the map anew"


@pytest.mark.parametrize("room", house.rooms())
def test_a_room_says_in_two_sentences_what_lives_there(room):
    assert len(re.findall(r"\.(?: |$)", house.says(room))) == 2


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_fit_a_few_screens(module):
    lines = len((PACKAGE / module).with_suffix(".py").read_text().splitlines())
    assert lines <= 330, f"{module} has {lines} lines: split it"


def test_the_training_loop_fits_a_screen():
    tree = ast.parse((PACKAGE / "training" / "train.py").read_text())
    loop = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train_runs")
    assert loop.end_lineno - loop.lineno < 60


def test_config_imports_no_torch():
    code = "import sys, loopprobe.config.sources; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", [name for name in loopprobe.__all__ if not name.startswith("_")])
def test_public_names_load(name):
    assert getattr(loopprobe, name).__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nope"):
        loopprobe.nope  # noqa: B018
