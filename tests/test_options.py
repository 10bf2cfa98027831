"""What is typed is refused in one line, before anything heavy is imported, or means what it says."""

import inspect
import json
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopprobe.cli import VERBS
from loopprobe.cli.parsing import MOST_NUMBERS, parse_numbers
from loopprobe.errors import LoopprobeError
from loopprobe.probes.registry import PROBES

FIXED = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=4))
@FIXED
def test_ranges_hold_both_ends(parts):
    text = " , ".join(f"{start}:{start + length}:{step}" for start, length, step in parts)
    expected = {i for start, length, step in parts for i in range(start, start + length + 1) if (i - start) % step == 0}
    assert parse_numbers(text, "--n") == sorted(expected)


@given(st.text("0123456789:,- x", max_size=12))
@FIXED
def test_any_text_is_numbers_or_one_line(text):
    numbers, line = [0], "--n ("
    try:
        numbers = parse_numbers(text, "--n")
    except LoopprobeError as error:
        line = str(error)
    assert len(line.splitlines()) == 1
    assert line.startswith("--n (")
    assert numbers == sorted(set(numbers))
    assert 0 < len(numbers) <= MOST_NUMBERS


@pytest.mark.parametrize("text", ["0:1000000000", f"0:{10**30}", "1:9,0:99999999999:2", "0:" + "9" * 5000])
def test_huge_ranges_are_refused_at_once(text):
    started = time.process_time()
    with pytest.raises(LoopprobeError):
        parse_numbers(text, "--n")
    assert time.process_time() - started < 0.5


def test_numbers_come_once_and_in_order():
    assert parse_numbers("5, 3,5,0:4:2 ", "--n") == [0, 2, 3, 4, 5]
    assert parse_numbers(":3", "--n") == [0, 1, 2, 3]
    assert parse_numbers(f"1:{MOST_NUMBERS}", "--n") == list(range(1, MOST_NUMBERS + 1))
    for text in ("3:1", "0:5:0", "0:5:-1", "", ",", "1,,2", "1.5", "-1", "1:2:3:4", "3:", "last", ":"):
        with pytest.raises(LoopprobeError, match="whole numbers"):
            parse_numbers(text, "--n")


LIGHT = [
    (["mask", "--n", "x"], "--n ('x')"),
    (["mask", "--n", "0:1000000000"], "1,000,000,001 numbers"),
    (["mask", "--loops", "2,1,0"], "loops (0)"),
    (["mask", "--mode", "first", "--mode", "last", "--n", "1", "--n", "2"], "--n is given 2 times"),
    (["mask", "--mode", "first,first"], "each once"),
    (["mask", "--mode", "first", "--mode", "first"], "each once"),
    (["mask", "--mode", ","], "mode"),
    (["mask", "--once", "--every-loop"], "given 2 times"),
    (["mask", "--at", "2"], "--once"),
    (["mask", "--prompts", "-1"], "prompts (-1)"),
    (["converge", "--states", "-1"], "states (-1)"),
    (["compare", "--loops", "0"], "loops (0)"),
    (["patch", "--corruption", "none"], "corruption ('none')"),
    (["patch", "--positions", "3:1"], "--positions ("),
    (["patch", "--seed", "1", "--seed", "1"], "--seed is given 2 times"),
    (["fixed-points", "--method", "guess"], "method ('guess')"),
    (["cache", "--loops", "0:100000000000"], "numbers"),
    (["cache", "--ckpt", "a", "--ckpt", "b"], "cache takes one model and 2 are given"),
    (["train", "--preset", "fast", "--preset", "relu"], "--preset is given 2 times"),
    (["run", "no_such_question"], "no_such_question"),
    (["run", "r1_models"], "r1_models"),
    (["report", "--questions", "nowhere"], "nowhere"),
]


def test_bad_options_are_refused_before_anything_heavy_is_imported():
    script = """
import json, sys
from loopprobe import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["loopprobe", *arguments]
    try:
        cli.main()
    except SystemExit as stopped:
        print(stopped.code, sorted({"torch", "xarray", "plotly"} & set(sys.modules)), file=sys.stderr)
"""
    lines = subprocess.run(
        [sys.executable, "-c", script, json.dumps([arguments for arguments, _ in LIGHT])],
        capture_output=True, text=True, check=True,
    ).stderr.splitlines()  # fmt: skip
    assert len(lines) == 2 * len(LIGHT)
    for (arguments, part), line, outcome in zip(LIGHT, lines[::2], lines[1::2], strict=True):
        assert outcome == "2 []", (arguments, line, outcome)
        assert line.startswith("loopprobe: ")
        assert part in line, (arguments, line)


def test_a_verb_and_its_probe_have_the_same_defaults():
    """What `loopprobe NAME` does, probe("NAME", model) does: an option that both have has one default."""
    compared = []
    for name, probe in PROBES.items():
        verb = VERBS.get(name.replace("_", "-"))
        if verb is None:
            continue
        usual = probe.config()
        for option, parameter in inspect.signature(verb).parameters.items():
            if not hasattr(usual, option) or parameter.default is None:  # None: what the probe does by itself
                continue
            wanted, told = getattr(usual, option), parameter.default
            if isinstance(told, str) and not isinstance(wanted, str):  # a list on the command line
                parts = wanted if isinstance(wanted, tuple) else (wanted,)
                told, wanted = (
                    told.split(","),
                    [f"{part:g}" if isinstance(part, float) else str(part) for part in parts],
                )
            if told == [""]:  # the usual ones, which the probe knows
                continue
            assert told == wanted, (name, option)
            compared.append((name, option))
    assert len(compared) > 60
