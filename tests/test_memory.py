"""Freed memory stays with the process where it was asked for, and nowhere else."""

import subprocess
import sys

import pytest

from loopprobe.support.memory import keep_freed_memory

USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
# Every public name is loaded, and each look into the C library for mallopt is printed.
IMPORT = """
import ctypes
asked = []
class Watched(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "mallopt":
            asked.append(name)
        return super().__getattr__(name)
ctypes.CDLL = Watched
import loopprobe
for name in loopprobe.__all__:
    getattr(loopprobe, name)
print(asked)
loopprobe.keep_freed_memory()
print(len(asked))
"""


@pytest.fixture
def options(monkeypatch):
    """The options of malloc that are set, in a C library that only writes them down."""
    seen = {}

    class Library:
        def __init__(self, name):
            self.mallopt = lambda option, value: seen.update({option: value})

    monkeypatch.setattr("loopprobe.support.memory.ctypes.CDLL", Library)
    monkeypatch.setattr("loopprobe.support.memory.sys.platform", "linux")
    for name in USERS_OWN:
        monkeypatch.delenv(name, raising=False)
    return seen


def test_the_explicit_call_raises_both_thresholds_of_glibc(options):
    keep_freed_memory()
    assert options == {-1: 2**31 - 1, -3: 2**30}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h


@pytest.mark.parametrize("name", USERS_OWN)
def test_explicit_malloc_settings_are_respected(options, monkeypatch, name):
    monkeypatch.setenv(name, "131072")
    keep_freed_memory()
    assert options == {}


def test_other_systems_are_left_alone(options, monkeypatch):
    monkeypatch.setattr("loopprobe.support.memory.sys.platform", "darwin")
    keep_freed_memory()
    assert options == {}


def test_the_command_line_asks_for_it(options, monkeypatch, capsys):
    from loopprobe.cli import main

    monkeypatch.setattr(sys, "argv", ["loopprobe", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert set(options) == {-1, -3}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_an_import_of_every_public_name_sets_nothing(monkeypatch):
    for name in USERS_OWN:
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "1"]  # the second shows that a call would have been seen
