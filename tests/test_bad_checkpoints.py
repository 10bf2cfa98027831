"""Checkpoints that are damaged, unusual, or of models that no memory holds."""

import json

import pytest
import torch
from conftest import TINY_CFG, make_model
from safetensors.torch import load_file, save_file

from loopprobe.errors import LoopprobeError
from loopprobe.store import checkpoint as cp
from loopprobe.store import training_state


def write(folder, dtype=torch.float32):
    folder.mkdir(parents=True)
    cp.save(cp.Checkpoint(TINY_CFG, make_model(torch.float32).to(dtype), step=5, wall_time_s=1.5), folder)
    return folder


@pytest.fixture
def saved(tmp_path):
    return write(tmp_path / "runs" / "tiny")


def change(folder, path, value):
    """Put a value at a dotted path of config.json; Ellipsis takes the key away."""
    tree = json.loads((folder / cp.CONFIG).read_text())
    *parents, last = path.split(".")
    inside = tree
    for part in parents:
        inside = inside[part]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    (folder / cp.CONFIG).write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("config.model.n_layers", True, r"n_layers \(True\).*valid integer"),
        ("config.model.n_layers", "1", r"n_layers \('1'\).*valid integer"),
        ("config.model.n_layers", 2.0, r"n_layers \(2\.0\).*valid integer"),
        ("config.model.n_layers", 100_000, r"2 layers and config.json has n_layers = 100000"),
        (
            "config.model.d_model",
            2**31 - 1,
            r"d_model 2,147,483,647.*needs [\d,]+ GB of .* free: lower",
        ),
        ("config.model.n_points", 10**12, r"n_points.*less than or equal to 2147483647"),
        ("config.model.n_loops", 10**30, r"n_loops.*less than or equal to"),
        ("config.model.eps", float("nan"), r"eps \(nan\)"),
        ("config.model.eps", float("inf"), r"eps \(inf\)"),
        ("config.model.unheard", 1, r"unknown config key 'model.unheard'"),
        ("config.model", [], r"model \(\[\]\) must be a table"),
        ("config", 5, r"config \(5\) must be a table"),
        ("config", ..., r"damaged \(KeyError\('config'\)\)"),
        ("config.train.seed", -1, r"train.seed \(-1\)"),
        ("config.train.seed", 2**31, r"train.seed \(2147483648\)"),
        ("config.task.name", "poetry", r"task.name \('poetry'\)"),
        ("config.task.tables", "iris", r"task.tables \('iris'\)"),
        ("step", "5", r"step \('5'\)"),
        ("step", -5, r"step \(-5\)"),
        ("wall_time_s", None, r"wall_time_s \(None\)"),
        ("evaluation", [1], r"evaluation \(\[1\]\)"),
        ("evaluation", {"loops": [4], "error": ["x"], "error_low": [0], "error_high": [1]}, "evaluation must hold"),
        ("evaluation", {"loops": [4], "error": [], "error_low": [0], "error_high": [1]}, "evaluation must hold"),
        ("provenance", "home", r"provenance \('home'\)"),
        ("format", "1", r"format \('1'\)"),
    ],
)
def test_a_bad_record_is_refused_in_one_line(saved, path, value, match):
    change(saved, path, value)
    with pytest.raises(LoopprobeError, match=match) as error:
        cp.load(saved)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text", ["[" * 100_000 + "]" * 100_000, "5", "[]", '{"format": 1' + "0" * 5000 + "}", "\0", "", "null", "NaN"]
)
def test_text_that_is_no_record_is_refused_in_one_line(saved, text):
    (saved / cp.CONFIG).write_text(text)
    with pytest.raises(LoopprobeError, match=r"config\.json") as error:
        cp.load(saved)
    assert "\n" not in str(error.value)


def test_a_loop_count_beyond_reach_costs_nothing_to_load(saved):
    change(saved, "config.model.n_loops", 10**9)
    change(saved, "config.train.loops.end", 10**9)
    model = cp.load(saved)
    assert model.cfg.n_loops == 10**9
    assert model(torch.zeros(1, 3, 3), torch.zeros(1, 3), 2).shape == (2, 1, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_and_counted(saved, bad):
    tensors = load_file(saved / cp.WEIGHTS)
    tensors["blocks.1.mlp.fc_in.weight"][2, 3:5] = bad
    save_file(tensors, saved / cp.WEIGHTS)
    with pytest.raises(LoopprobeError, match=r"2 of the 1024 values of blocks\.1\.mlp\.fc_in\.weight are NaN or inf"):
        cp.load(saved)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_real_numbers_are_refused(saved, dtype):
    tensors = load_file(saved / cp.WEIGHTS)
    tensors["read_out.weight"] = tensors["read_out.weight"].to(dtype)
    save_file(tensors, saved / cp.WEIGHTS)
    with pytest.raises(LoopprobeError, match=r"read_out\.weight holds .*convert it"):
        cp.load(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_weights_is_that_of_the_model(tmp_path, dtype):
    loaded = cp.load_checkpoint(write(tmp_path / "half", dtype))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    again = cp.load_checkpoint(write(tmp_path / "again", dtype))
    assert loaded.digest() == again.digest()
    prediction = loaded.model(*loaded.held_out(4))
    assert prediction.dtype == dtype
    assert prediction.isfinite().all()
    with torch.no_grad():
        again.model.W_pos[0, 0] += 1
    assert loaded.digest() != again.digest()


def test_weights_of_several_dtypes_lose_nothing(saved):
    tensors = load_file(saved / cp.WEIGHTS)
    tensors["W_pos"] = tensors["W_pos"].double() + 1e-12
    tensors["read_out.bias"] = tensors["read_out.bias"].half()
    save_file(tensors, saved / cp.WEIGHTS)
    assert torch.equal(cp.load(saved).W_pos, tensors["W_pos"])


def test_the_digest_of_a_shipped_model_stays(checkpoint):
    """As it was written into results of earlier versions."""
    assert cp.load_checkpoint("lr-b20-T10").digest() == DIGEST
    assert checkpoint.digest() == cp.Checkpoint(TINY_CFG, make_model(torch.float32)).digest()


DIGEST = "a86501055dac0fda"


@pytest.mark.parametrize("device", ["meta", "cuda:99", "toaster", "cpu:x", ""])
def test_devices_that_are_not_there_are_refused(saved, device):
    with pytest.raises(LoopprobeError, match="device") as error:
        cp.load(saved, device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "\0", "a" * 5000, "../..", "tiny/config.json", "nope\nnope"])
def test_names_that_are_no_checkpoint_are_refused_in_one_line(saved, name):
    with pytest.raises(LoopprobeError, match="no checkpoint") as error:
        cp.load(name)
    assert "\n" not in str(error.value)


def _lacks_generator(tensors):
    del tensors["generator"]


def _other_numbers(tensors):
    tensors["optimizer.0.x.exp_avg"] = torch.zeros(2)


def _nan(tensors):
    tensors["model.W_pos"][0] = float("nan")


@pytest.mark.parametrize("damage", [_lacks_generator, _other_numbers, _nan])
def test_a_damaged_state_of_a_run_is_refused_in_one_line(tmp_path, damage):
    model = make_model(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    training_state.save_state(tmp_path, model, [optimizer], torch.Generator(), 3, 1.0, torch.zeros(0, 2))
    assert training_state.read_state(tmp_path, model, [optimizer], torch.Generator())[0] == 3
    tensors = load_file(tmp_path / training_state.STATE)
    damage(tensors)
    save_file(tensors, tmp_path / training_state.STATE, metadata={"step": "3", "seconds": "1.0"})
    with pytest.raises(LoopprobeError, match="damaged") as error:
        training_state.read_state(tmp_path, model, [optimizer], torch.Generator())
    assert "\n" not in str(error.value)


def test_a_checkpoint_shows_itself_in_three_lines(checkpoint):
    checkpoint.evaluation = {
        "loops": [4, 500], "median": [0.5, 1], "median_low": [0.4, 0.9], "median_high": [0.6, 2], "failures": [0, 0.1],
        "failures_low": [0, 0], "failures_high": [0.1, 0.2], "mean": [3, 4], "failure_level": 0.1,
    }  # fmt: skip
    lines = repr(checkpoint).split("\n")
    assert lines[0] == "tiny: linear regression, 2 layers, b = 4, T = 2"
    assert lines[1].startswith("error at the query 0.5 [0.4, 0.6] after 4 loops, 1 [0.9, 2] after 500 loops; 0 steps")
    assert lines[2] == f"weights {checkpoint.digest()}, float32 on cpu"
    assert len(lines) == 3
    checkpoint.evaluation = {"loops": [4], "error": [0.5], "error_low": [0.4], "error_high": [0.6]}  # by 0.1.0
    assert "error at the query mean 0.5 after 4 loops" in repr(checkpoint)
