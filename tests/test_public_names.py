"""Every public name is the same object at every access, whatever was imported before it."""

import pickle
import subprocess
import sys

import pytest

import loopprobe

SCRIPT = """
import sys
from importlib import import_module
import loopprobe

def twice(name):
    first = getattr(loopprobe, name)
    namespace = {}
    exec(f"from loopprobe import {name}", namespace)
    assert first is namespace[name] is getattr(loopprobe, name), name
    assert first is getattr(import_module(f"loopprobe.{loopprobe._HOME[name]}"), name), name
    assert callable(first) and first.__name__ == name, name
    return first

names = sorted(loopprobe._HOME, reverse=sys.argv[1] == "reversed")
if sys.argv[2] == "modules":
    for home in loopprobe._HOME.values():
        import_module(f"loopprobe.{home}")
objects = {name: twice(name) for name in names}
for name in reversed(names):
    assert twice(name) is objects[name]
import loopprobe.training.train
assert loopprobe.train is objects["train"] is loopprobe.training.train.train
print("good")
"""


@pytest.mark.slow
def test_public_names_are_the_same_objects_in_every_order():
    running = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, order, before], stdout=subprocess.PIPE, text=True)
        for order, before in (("forward", "modules"), ("reversed", "nothing"))
    ]
    for process in running:
        assert process.communicate(timeout=200)[0] == "good\n"


def test_the_package_is_otherwise_an_ordinary_module(monkeypatch):
    monkeypatch.setattr(loopprobe, "__version__", "9")
    assert loopprobe.__version__ == "9"
    monkeypatch.setattr(loopprobe, "train", len)
    assert loopprobe.train is len
    monkeypatch.undo()
    assert loopprobe.train.__module__ == "loopprobe.training.train"
    assert pickle.loads(pickle.dumps(loopprobe.train)) is loopprobe.train
