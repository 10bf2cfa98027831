"""With --json a verb prints one object for a script, and nothing else to its standard output."""

import json
import subprocess
import sys

import pytest


def said(*arguments, cwd):
    command = [sys.executable, "-m", "loopprobe", *arguments, "--json"]
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout


def test_a_probe_says_its_tables_findings_and_files(tmp_path):
    options = "--prompts", "4", "--loops", "5", "--n", "1,31", "--ckpt", "lr-b5-T5", "--out", "here"
    code, printed = said("mask", *options, cwd=tmp_path)
    found = json.loads(printed)
    assert (code, printed.count("\n")) == (0, 1)
    [table] = found["tables"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert len(found["sentences"]) == 1
    assert sorted(found["files"]) == sorted(
        str(path.relative_to(tmp_path)) for path in (tmp_path / "here").glob("*.[nh]*")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lr-b20-T10", "s5-b12-T12"])
def test_show_gives_the_configuration_and_the_errors(name, tmp_path):
    from loopprobe import load_checkpoint

    code, printed = said("show", name, cwd=tmp_path)
    known = json.loads(printed)["checkpoint"]
    checkpoint = load_checkpoint(name)
    assert code == 0
    assert known["model"]["n_loops"] == checkpoint.config.model.n_loops
    assert known["evaluation"] == checkpoint.evaluation


def test_a_mistake_prints_no_object(tmp_path):
    code, printed = said("show", "nope", cwd=tmp_path)
    assert (code, printed) == (2, "")
