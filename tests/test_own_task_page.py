"""The page on a task of one's own: its code and its commands run, with fewer steps, and say what is true."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import run_command

import loopprobe
from loopprobe.tasks import registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own_task.md"
KNOWN = {"python", "console", "toml"}


@pytest.fixture
def session(monkeypatch, tmp_path):
    """A folder that modules are imported from, and a registry that is as before afterwards."""
    for name in ("_REGISTERED", "_SEEN", "_BROUGHT"):
        monkeypatch.setattr(registry, name, {})
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_tasks", None)


def test_the_code_of_the_page_runs(session, monkeypatch, capsys):
    text = re.sub(r"train\.steps=\d+", "train.steps=4", PAGE.read_text())
    blocks = re.findall(r'```(\w+)(?: title="(\S+)")?\n(.*?)```', text, re.S)
    assert {kind for kind, _, _ in blocks} == KNOWN
    names = {"__name__": "page"}
    commands = 0
    for kind, file, block in blocks:
        if file:
            Path(file).write_text(block)
        elif kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)
        elif kind == "console":
            for line in block.splitlines():
                assert line.startswith("$ loopprobe ")
                code, _, err = run_command(monkeypatch, capsys, *line.split()[2:])
                assert code == 0, (line, err)
                commands += 1
        else:
            [group] = tomllib.loads(block)["project"]["entry-points"]
            assert group == registry.GROUP
    assert commands == 5
    assert names["checkpoint"].config.task.parameters == {"slope": 3.0}
    assert loopprobe.load_checkpoint("runs/recall").config.model.d_vocab == 16


def test_the_task_of_the_page_is_what_it_says(session):
    code = re.search(r'```python title="my_tasks.py"\n(.*?)```', PAGE.read_text(), re.S)[1]
    (session / "my_tasks.py").write_text(code)
    task = loopprobe.TaskConfig(name="my_tasks.py:Recall")
    prompts = loopprobe.tasks.held_out_tokens(task, 50, 3)
    for tokens, answer in zip(prompts.tokens.tolist(), prompts.answers[:, 0].tolist(), strict=True):
        named = [prompts.names[token] for token in tokens]
        told = dict(zip(named[:-1:2], named[1::2], strict=True))
        assert told[named[-1]] == prompts.answer_names[answer]
    assert prompts.n_tokens == task.rules.n_tokens(3) == 7


def test_every_verb_that_runs_a_probe_stands_in_the_table():
    from loopprobe.probes.registry import PROBES

    table = PAGE.read_text().split("## What each verb does with it")[1].split("## ")[0]
    assert not [name for name in PROBES if name not in ("curves",) and name.replace("_", "-") not in table]
