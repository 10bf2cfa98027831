"""Language models in worker processes: what a question of several finds there is what one process finds."""

import pickle

import numpy as np
import pytest
import torch
from looped_others import BY_HAND, dory, draw, hrm_text, save, wrapped

from loopprobe import load
from loopprobe.probes.dataset import read_dataset

TEXTS = ("def step(model, z)",)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_wrapped_model_of_every_architecture_goes_to_another_process(name):
    model, inputs = wrapped(name), draw(name)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other(inputs, n_loops=5), model(inputs, n_loops=5))


def test_a_model_with_code_of_its_own_goes_to_another_process():
    model = load("hf:raven-docs", trust_remote_code=True)
    other = pickle.loads(pickle.dumps(model))
    tokens = torch.arange(3, 9)[None]
    assert torch.equal(other(tokens, n_loops=3), model(tokens, n_loops=3))


@pytest.mark.slow
def test_questions_of_several_models_are_answered_by_workers(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"hf:{save(make(), tmp_path / name)}" for name, make in (("dory", dory), ("hrm", hrm_text))]
    for probe, options in (("converge", "loops = 4\nstates = 0"), ("lens", "loops = 2")):
        lines = ['section = "own"', 'title = "own"', 'asks = "what?"', f'probe = "{probe}"', "trust_remote_code = true"]
        lines += [f"checkpoints = {[*names, 'hf:raven-docs']}", f"text = {list(TEXTS)}", "[options]", options]
        (tmp_path / f"{probe}.toml").write_text("\n".join(lines))
    for workers in (1, 2):
        code, out, err = command(
            "run", "converge.toml", "lens.toml", "--workers", workers, "--out", f"by-{workers}", "--device", "cpu"
        )
        assert code == 0, err
        assert "left out" not in out + err
    files = sorted(path.relative_to(tmp_path / "by-1") for path in (tmp_path / "by-1").rglob("*.nc"))
    assert len(files) == 2 * 3 * len(TEXTS)
    for file in files:
        here, there = read_dataset(tmp_path / "by-1" / file), read_dataset(tmp_path / "by-2" / file)
        for name in here.data_vars:
            if here[name].dtype.kind == "f":
                np.testing.assert_allclose(there[name], here[name], rtol=1e-5, atol=1e-5, err_msg=f"{name} of {file}")
