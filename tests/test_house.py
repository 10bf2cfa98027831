"""The rules of the house: data flows one way, modules stay small, public names load lazily."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loopprobe

PACKAGE = Path(loopprobe.__file__).parent
# A module imports only from modules to its left.
ORDER = [
    "memory",
    "errors",
    "types",
    "configuration",
    "task_config",
    "lens_config",
    "config",
    "settings",
    "budget",
    "tasks",
    "hook_points",
    "selection",
    "labels",
    "hook_trees",
    "storage",
    "activation_cache",
    "cache_file",
    "cache",
    "lens_options",
    "hooked_root",
    "weight_views",
    "blocks",
    "model",
    "replay",
    "stack",
    "interventions",
    "hooks",
    "cluster",
    "provenance",
    "statistics",
    "checkpoint_file",
    "checkpoint",
    "foreign",
    "corruptions",
    "algorithms",
    "baselines",
    "evaluate",
    "dynamics",
    "runs",
    "steps",
    "train",
    "sweep",
    "tracking",
    "results",
    "stream",
    "probes",
    "questions",
    "study",
    "saved",
    "figures",
    "verdicts",
    "claims",
    "progress",
    "tables",
    "present",
    "session",
    "report",
    "cli",
]
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))


def _place(module):
    return ORDER.index(module.split(".")[0])


@pytest.mark.parametrize("module", [m for m in MODULES if m.name != "__init__"], ids=str)
def test_imports_come_from_the_left(module):
    here = ".".join(module.parts)
    tree = ast.parse((PACKAGE / module).with_suffix(".py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loopprobe."):
            names = [node.module.removeprefix("loopprobe.")]
        elif isinstance(node, ast.Import):
            names = [n.name.removeprefix("loopprobe.") for n in node.names if n.name.startswith("loopprobe.")]
        else:
            continue
        for name in names:
            same_package = name.split(".")[0] == here.split(".")[0]
            assert same_package or _place(name) < _place(here), f"{here} imports {name}, which stands to its right"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_fit_a_few_screens(module):
    lines = len((PACKAGE / module).with_suffix(".py").read_text().splitlines())
    assert lines <= 330, f"{module} has {lines} lines: split it"


def test_the_training_loop_fits_a_screen():
    tree = ast.parse((PACKAGE / "train.py").read_text())
    loop = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train_runs")
    assert loop.end_lineno - loop.lineno < 60


def test_config_imports_no_torch():
    code = "import sys, loopprobe.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", [name for name in loopprobe.__all__ if not name.startswith("_")])
def test_public_names_load(name):
    assert getattr(loopprobe, name).__doc__


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nope"):
        loopprobe.nope  # noqa: B018


def test_the_version_is_stated_once_and_the_same():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', text, re.M)[1] == loopprobe.__version__
