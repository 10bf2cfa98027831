import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from loopprobe.config.schema import Config
from loopprobe.errors import LoopprobeError
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.training.sweep import last_row, plan, read_grid, stacks, sweep
from loopprobe.training.train import train

LINES = [f'"model.{key}" = {value}' for key, value in TINY.items() if key != "n_loops"] + [
    '"train.dims" = 3', '"train.points" = 6', '"train.batch_size" = 4', '"train.device" = "cpu"',
    '"train.log_every" = 5', '"train.checkpoint_every" = 5',
]  # fmt: skip


def grid(path, *lines):
    path.write_text("\n".join(["[[grid]]", *LINES, *lines]))
    return path


def test_a_grid_is_the_product_of_its_axes(tmp_path):
    path = grid(
        tmp_path / "g.toml", '"model.n_loops" = [2, 4]', '"train.loop_window" = [2, 4]', '"train.seed" = [0, 1]'
    )
    configs, notes = read_grid(path)
    assert [c.name for c in configs] == [
        "lr-L2-b2-T2", "lr-L2-b2-T2-s1", "lr-L2-b4-T2", "lr-L2-b4-T2-s1", "lr-L2-b4-T4", "lr-L2-b4-T4-s1",
    ]  # fmt: skip
    assert set(notes) == {"window 4 is above 2 loops: it is 2"}


def test_what_a_model_of_a_grid_costs_does_not_grow_with_their_number(tmp_path, monkeypatch):
    compared = [0]
    equal = Config.__eq__

    def counted(self, other):
        compared[0] += 1
        return equal(self, other)

    monkeypatch.setattr(Config, "__eq__", counted)
    configs, _ = read_grid(grid(tmp_path / "g.toml", f'"train.seed" = {list(range(300))}'))
    planned = plan(configs, tmp_path / "out")
    assert [len(members) for members in stacks(planned, 16)] == [16] * 18 + [12]
    assert compared[0] < 300, "each configuration is looked up, not compared with all others"


def test_a_grid_may_start_from_a_preset(tmp_path):
    path = tmp_path / "g.toml"
    path.write_text('[[grid]]\npreset = "reference"\n"model.n_loops" = [10, 20]\n"train.steps" = 30\n')
    configs, _ = read_grid(path)
    assert [c.name for c in configs] == ["lr-b10-T10-grown-adam-30steps", "lr-b20-T10-grown-adam-30steps"]
    assert {(c.train.adam_lr, c.train.grad_clip, c.model.initializer_range) for c in configs} == {(1e-4, 0.0, 0.02)}


@pytest.mark.parametrize("name", sorted(p.name for p in Path(__file__).parents[1].glob("probes/*_models.toml")))
def test_the_grids_of_the_study_are_valid(name, tmp_path):
    configs, _ = read_grid(Path(__file__).parents[1] / "probes" / name)
    assert len(plan(configs, tmp_path)) == len(configs)


def test_the_grids_hold_every_model_that_a_saved_question_asks_for():
    from loopprobe.study.saved import saved_questions

    probes = Path(__file__).parents[1] / "probes"
    trained = {name for path in probes.glob("*_models.toml") for name in read_grid(path)[0].values()}
    asked = {name for saved in saved_questions(probes).values() for name in saved.checkpoints}
    assert asked <= trained


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[[grid]]\n'model.n_lops' = 3", "n_lops"),
        ("grid = 3", "hold"),
        ("[[grid]]\npreset = 'referense'", "unknown preset"),
        ("[model]\nn_loops = 3", "must hold"),
        ("[[", "TOML"),
    ],
)
def test_bad_grids_get_one_line(tmp_path, text, match):
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(LoopprobeError, match=match):
        read_grid(tmp_path / "g.toml")
    with pytest.raises(LoopprobeError, match="no grid file"):
        read_grid(tmp_path / "none.toml")


SCRIPT = """
import sys, pathlib
import loopprobe.store.evaluate
from loopprobe.training.sweep import plan, read_grid, sweep
if __name__ == "__main__":
    configs, _ = read_grid(pathlib.Path(sys.argv[1]))
    sweep(plan(configs, pathlib.Path("out")), workers=2)
"""


@pytest.mark.slow
def test_a_sweep_survives_a_kill_skips_what_is_done_and_says_what_differs(tmp_path):
    path = grid(
        tmp_path / "g.toml",
        '"model.n_loops" = 2',
        '"train.loop_window" = 2',
        '"train.seed" = [0, 1]',
        '"train.steps" = 150',
    )
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "script.py", str(path)], start_new_session=True, env=environment)
    deadline = time.monotonic() + 120
    while not any((row := last_row(folder)) and row["step"] >= 10 for folder in Path("out").glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    configs, _ = read_grid(path)
    before = {model.name: model.status for model in plan(configs, Path("out"))}
    assert "resume" in before.values()
    sweep(plan(configs, Path("out")), workers=2)
    assert {model.status for model in plan(configs, Path("out"))} == {"done"}
    for config, folder in configs.items():
        torch.set_num_threads(1)
        train(config, tmp_path / "alone" / folder)
        there, alone = (load_file(root / folder / "model.safetensors") for root in (Path("out"), tmp_path / "alone"))
        assert all(torch.equal(there[name], alone[name]) for name in alone)
        assert load_checkpoint(Path("out") / folder).evaluation["loops"] == [2]
    other = grid(
        tmp_path / "h.toml",
        '"model.n_loops" = 2',
        '"train.loop_window" = 2',
        '"train.steps" = 150',
        '"model.act_fn" = "relu"',
    )
    [changed] = plan(read_grid(other)[0], Path("out"))
    assert changed.status == "differs"
    assert not changed.todo


def test_names_tell_every_key_of_a_grid_that_makes_a_difference(tmp_path, command):
    lines = (
        '"train.muon_lr" = [0.01, 0.02]',  # 0.02 is the recipe's own
        '"train.seed" = [0, 2]',
        '"train.weight_decay" = [0.1]',
        '"train.log_every" = 20',
        '"train.loops" = { kind = "uniform", start = 10 }',
    )
    (tmp_path / "g.toml").write_text("\n".join(["[[grid]]", *lines]))
    configs, _ = read_grid(tmp_path / "g.toml")
    assert list(configs.values()) == [
        "lr-b20-T10-uniform-muon_lr0.01-weight_decay0.1", "lr-b20-T10-uniform-muon_lr0.01-weight_decay0.1-s2",
        "lr-b20-T10-uniform-weight_decay0.1", "lr-b20-T10-uniform-weight_decay0.1-s2",
    ]  # fmt: skip
    assert [model.folder.name for model in plan(configs, tmp_path)] == list(configs.values())
    _, shown, _ = command("sweep", tmp_path / "g.toml", "--out", tmp_path, "--dry-run")
    assert all(name in shown for name in configs.values())


@pytest.mark.slow
def test_a_model_that_fails_is_named(tmp_path):
    path = grid(tmp_path / "g.toml", '"model.n_loops" = 2', '"train.loop_window" = 2', '"train.steps" = 3')
    planned = plan(read_grid(path)[0], tmp_path / "out")
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(LoopprobeError, match=r"lr-L2-b2-T2-3steps.*: cannot write"):
        sweep(planned, workers=1)
