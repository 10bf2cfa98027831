"""Bad input of every kind: one line that says what is wrong, exit code 2, nothing half written."""

import json
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import TINY_CFG, make_model
from safetensors.torch import load_file, save_file

from loopprobe.cli import main
from loopprobe.store import checkpoint as cp

PENDING = set()  # cases whose mending is under way elsewhere

PROBES = [
    "ablate", "mask", "converge", "compare", "shift", "attention", "attribute", "align", "decode", "edges", "exit",
    "circuit", "fixed-points", "lens", "patch", "paths", "recover", "failures", "features", "steer",
]  # fmt: skip
SETTINGS = [
    "model.n_layers=true", 'model.n_layers="1"', "model.n_layers=1.0", "model.n_layers=0", "model.n_layers=-1",
    "model.n_layers=[1]", "model.n_layers=nan", "model.n_layers=99999999999", "model.n_heads=3", "model.d_model=1e3",
    "model.d_model=1048576", "model.d_mlp=2000000000", "model.n_dims=100000000", "model.n_points=1000000",
    "model.n_loops=5", "model.eps=0", "model.eps=inf", "model.eps=-1", "model.eps='small'", "model.act_fn=tanh",
    "model.injection=plus", "model.n_ctx=3", "model.initializer_range=nan", "model.initializer_range=true",
    "model.nope=1", "model=1", "model=[[1]]", "model='x'", "train=1", "train=[]", "train=true", "task=lr", "task=3",
    "nope.x=1", "nope=1", "steps=1", "=1", ".=1", "train.=1", "train..x=1", "train.steps", "", "train.steps=",
    "train.steps=1e3", "train.steps=0", "train.steps=true", "train.batch_size=0", "train.batch_size=50000000",
    "train.loop_window=21", "train.loop_window=0", "train.betas=[1.5,0.9]", "train.betas=[0.9]", "train.betas=0.9",
    "train.betas=[0.9,1.0]", "train.betas=[true,0.9]", "train.betas=[[0.9],[0.9]]", "train.muon_lr=inf",
    "train.muon_lr=-1", "train.muon_lr=1e30", "train.adam_lr=nan", "train.adam_lr=0", "train.weight_decay=-0.1",
    "train.grad_clip=inf", "train.decay=2", "train.seed=-1", "train.seed=2147483648", "train.seed=1.5",
    "train.seed=99999999999999999999", "train.device=meta", "train.device=toaster", "train.device=cuda:9999",
    "train.device=3", "train.precision=float16", "train.loss=l1", "train.optimizer=sgd", "train.dims=11",
    "train.dims=true", "train.dims=2.5", "train.dims.kind=step", "train.dims.over=2", "train.dims={nope=1}",
    "train.points.start=40", "train.log_every=0", "task.name=poetry", "task.name=tables", "task.noise_std=1",
    "task.sparsity=2", "task.depth=3", "task.tables=iris", "task.labels=2", "model.n_layers=" + "9" * 5000,
    "model.n_layers=" + "[" * 20000,
]  # fmt: skip

CASES = {f"set {value[:40]}": ["train", "--out", "out", "--set", value] for value in SETTINGS}
CASES |= {
    "set twice": ["train", "--out", "out", "--set", "train.steps=1", "--set", "train.steps=2"],
    "set in part": ["train", "--out", "out", "--set", "train.dims=3", "--set", "train.dims.end=4"],
    "device twice": ["train", "--out", "out", "--device", "cpu", "--set", "train.device=cpu"],
    "no preset": ["train", "--out", "out", "--preset", "nope"],
    "no file": ["train", "nope.toml", "--out", "out"],
    "folder as file": ["train", "runs", "--out", "out"],
    "broken toml": ["train", "broken.toml", "--out", "out"],
    "deep toml": ["train", "deep.toml", "--out", "out"],
    "binary toml": ["train", "binary.toml", "--out", "out"],
    "section as number": ["train", "number.toml", "--out", "out"],
    "resume nothing": ["train", "--resume", "--out", "out"],
    "train over": ["train", "--out", "runs/tiny", "--set", "train.steps=1"],
    "sweep no file": ["sweep", "nope.toml"],
    "sweep broken": ["sweep", "broken.toml"],
    "sweep deep": ["sweep", "deep.toml"],
    "sweep number": ["sweep", "number.toml"],
    "sweep workers": ["sweep", "broken.toml", "--workers", "0"],
    "sweep stack": ["sweep", "broken.toml", "--stack", "0"],
    "show nothing": ["show", "nope"],
    "show empty": ["show", ""],
    "show long": ["show", "a" * 5000],
    "show bad json": ["show", "bad-json"],
    "show deep json": ["show", "bad-deep"],
    "export nothing": ["export", "nope"],
    "export nan": ["export", "bad-nan"],
    "export over": ["export", "tiny", "--out", "broken.toml"],
    "import no file": ["import", "nope.pt", "--n-heads", "2", "--n-loops", "2"],
    "import text": ["import", "broken.toml", "--n-heads", "2", "--n-loops", "2"],
    "import heads": ["import", "tl.safetensors", "--n-heads", "0", "--n-loops", "2"],
    "import loops": ["import", "tl.safetensors", "--n-heads", "2", "--n-loops", "0"],
    "import task": ["import", "tl.safetensors", "--n-heads", "2", "--n-loops", "2", "--task", "poetry"],
    "import injection": ["import", "tl.safetensors", "--n-heads", "2", "--n-loops", "2", "--injection", "plus"],
    "run no question": ["run", "nope.toml"],
    "run broken": ["run", "broken.toml"],
    "run deep": ["run", "deep.toml"],
    "report no folder": ["report", "--questions", "nope"],
    "cache loops": ["cache", "--ckpt", "tiny", "--loops", "0:100000000000"],
    "cache prompts": ["cache", "--ckpt", "tiny", "--prompts", "0"],
    "cache names": ["cache", "--ckpt", "tiny", "--names", "nope"],
    "cache positions": ["cache", "--ckpt", "tiny", "--positions", "99"],
    "mask n": ["mask", "--ckpt", "tiny", "--n", "0:1000000000"],
    "mask n words": ["mask", "--ckpt", "tiny", "--n", "many"],
    "mask n negative": ["mask", "--ckpt", "tiny", "--n", "-3"],
    "mask n beyond": ["mask", "--ckpt", "tiny", "--n", "99"],
    "mask mode": ["mask", "--ckpt", "tiny", "--mode", "middle"],
    "mask fill": ["mask", "--ckpt", "tiny", "--fill", "ink"],
    "mask loops zero": ["mask", "--ckpt", "tiny", "--n", "2", "--loops", "0"],
    "patch corruption": ["patch", "--ckpt", "tiny", "--corruption", "nope"],
    "patch positions": ["patch", "--ckpt", "tiny", "--positions", "99"],
    "shift by nothing": ["shift", "--ckpt", "tiny", "--shifts", "nope"],
    "table none": ["mask", "--ckpt", "tiny", "--n", "2", "--data", "nope.csv"],
    "table text": ["mask", "--ckpt", "tiny", "--n", "2", "--data", "broken.toml"],
    "table twice": ["mask", "--ckpt", "tiny", "--n", "2", "--data", "twice.csv"],
    "table infinite": ["mask", "--ckpt", "tiny", "--n", "2", "--data", "infinite.csv"],
    "table target": ["mask", "--ckpt", "tiny", "--n", "2", "--data", "good.csv", "--target", "nope"],
    "table shifted": ["mask", "--ckpt", "tiny", "--n", "2", "--data", "good.csv", "--shift", "noise"],
    "no shift": ["mask", "--ckpt", "tiny", "--n", "2", "--shift", "nope"],
    "output exists": ["mask", "--ckpt", "tiny", "--n", "2", "--out", "runs"],
    "output is a file": ["mask", "--ckpt", "tiny", "--n", "2", "--out", "good.csv"],
}
for name in ("nan", "int", "json", "deep", "bool", "huge", "layers", "seed", "truncated", "list"):
    CASES[f"checkpoint {name}"] = ["mask", "--ckpt", f"bad-{name}", "--n", "2"]
for verb in PROBES:
    CASES |= {
        f"{verb} checkpoint": [verb, "--ckpt", "nope"],
        f"{verb} prompts": [verb, "--ckpt", "tiny", "--prompts", "0"],
        f"{verb} many prompts": [verb, "--ckpt", "tiny", "--prompts", "10000000000"],
        f"{verb} seed": [verb, "--ckpt", "tiny", "--seed", "2147483648"],
        f"{verb} device": [verb, "--ckpt", "tiny", "--device", "meta"],
    }
    if verb != "fixed-points":  # it keeps the last states alone, however far the loop runs
        CASES[f"{verb} many loops"] = [verb, "--ckpt", "tiny", "--loops", "1000000000"]
for verb in ("fixed-points", "converge"):
    CASES[f"{verb} far"] = [verb, "--ckpt", "tiny", "--far", "1000000000"]


def _damage(folder, name, change):
    bad = folder / "runs" / f"bad-{name}"
    bad.mkdir(parents=True)
    cp.save(cp.Checkpoint(TINY_CFG, make_model(torch.float32)), bad)
    change(bad)


def _record(**changes):
    def change(bad):
        tree = json.loads((bad / cp.CONFIG).read_text())
        for key, value in changes.items():
            section, field = key.split("__")
            tree["config"][section][field] = value
        (bad / cp.CONFIG).write_text(json.dumps(tree))

    return change


def _weights(value):
    def change(bad):
        tensors = load_file(bad / cp.WEIGHTS)
        tensors["W_pos"] = torch.full_like(tensors["W_pos"], value, dtype=torch.tensor(value).dtype)
        save_file(tensors, bad / cp.WEIGHTS)

    return change


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with checkpoints, tables and files, good and bad."""
    folder = tmp_path_factory.mktemp("place")
    _damage(folder, "good", lambda bad: bad.rename(folder / "runs" / "tiny"))
    _damage(folder, "nan", _weights(float("nan")))
    _damage(folder, "int", _weights(3))
    _damage(folder, "json", lambda bad: (bad / cp.CONFIG).write_text("{"))
    _damage(folder, "list", lambda bad: (bad / cp.CONFIG).write_text("[]"))
    _damage(folder, "deep", lambda bad: (bad / cp.CONFIG).write_text("[" * 100_000))
    _damage(folder, "bool", _record(model__n_layers=True))
    _damage(folder, "huge", _record(model__d_mlp=2**31 - 1, model__d_model=2**20))
    _damage(folder, "layers", _record(model__n_layers=10**6))
    _damage(folder, "seed", _record(train__seed=2**40))
    _damage(folder, "truncated", lambda bad: (bad / cp.WEIGHTS).write_bytes(b"\x10\0\0\0\0\0\0\0{"))
    from loopprobe.store.foreign import write_transformer_lens

    write_transformer_lens(make_model(torch.float32), folder / "tl.safetensors")
    (folder / "broken.toml").write_text("[train\n")
    (folder / "deep.toml").write_text("x = " + "[" * 20_000)
    (folder / "binary.toml").write_bytes(b"\xff\x00\xfe")
    (folder / "number.toml").write_text("train = 1\nprobe = 2\ngrid = 3\n")
    table = pd.DataFrame({"a": range(40), "b": [i * i % 7 for i in range(40)], "y": [i % 5 for i in range(40)]})
    table.to_csv(folder / "good.csv", index=False)
    table.to_csv(folder / "twice.csv", index=False, header=["a", "a", "y"])
    table.assign(b=float("inf")).to_csv(folder / "infinite.csv", index=False)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


def check(errors, code, before, after):
    lines = [line for line in errors.splitlines() if line.strip()]
    assert code == 2
    assert "Traceback" not in errors
    assert "unexpected" not in errors
    assert len(lines) == 1 or lines[0].startswith("Usage"), errors[:2000]
    assert after == before


@pytest.mark.parametrize("case", [name for name in CASES if name not in PENDING])
def test_bad_input_is_refused(place, monkeypatch, capsys, case):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["loopprobe", *CASES[case]])
    before, started = contents(place), time.process_time()
    with pytest.raises(SystemExit) as ended:
        main()
    assert time.process_time() - started < 10
    check(capsys.readouterr().err, ended.value.code, before, contents(place))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["set train=1", "checkpoint nan"])
def test_bad_input_is_refused_in_a_process_of_its_own(place, case):
    before = contents(place)
    command = [sys.executable, "-c", "from loopprobe.cli import main; main()", *CASES[case]]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    check(done.stderr, done.returncode, before, contents(place))


def test_there_are_enough_cases():
    assert len(CASES) >= 200
    assert set(CASES) >= PENDING
