"""The verbs take a wrapped module of one's own by the file that makes it, as they take a checkpoint."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import loopprobe
from loopprobe import probe
from loopprobe.errors import LoopprobeError
from loopprobe.probes.questions import Question, answer, prepare
from loopprobe.store.own import is_own
from loopprobe.support.cluster import Processes

FILE = Path(__file__).with_name("own_models.py")
MADE = f"{FILE}:made"


def changed(tmp_path, old, new):
    text = FILE.read_text()
    assert text.count(old) == 1
    path = tmp_path / "changed.py"
    path.write_text(text.replace(old, new))
    return path


def test_a_file_gives_the_model_that_a_session_has():
    subject = loopprobe.load_checkpoint(MADE)
    assert subject.label == "made"
    assert subject.name == MADE
    assert subject.identity()["source"]
    same = loopprobe.load(f"{FILE}:seeded")
    torch.testing.assert_close(same.module.state_dict(), subject.model.module.state_dict(), rtol=0, atol=0)
    prompts = subject.held_out(6)
    data = probe("converge", subject, prompts, loops=7, states=0)
    assert data.model.item() == "made"
    expected = prompts.errors(subject.model(*prompts.inputs, n_loops=7))[..., -1]
    np.testing.assert_array_equal(data.error, expected.detach())


def test_a_verb_writes_what_the_session_measures(command, tmp_path):
    command("mask", "--ckpt", MADE, "--n", "0,2", "--prompts", "8", "--loops", "6", "--out", str(tmp_path / "out"))
    with xr.open_dataset(tmp_path / "out" / "mask.nc", engine="h5netcdf") as data:
        assert data.model.item() == "made"
        assert json.loads(data.attrs["checkpoint"])["name"] == MADE
        here = probe("mask", loopprobe.load_checkpoint(MADE), 8, n=(0, 2), loops=6)
        np.testing.assert_array_equal(data.error, here.error)
    assert "651 weights" in command("inspect", MADE)[1]


def test_models_of_several_files_have_names_that_tell_them_apart(tmp_path):
    other = changed(tmp_path, "manual_seed(0)", "manual_seed(1)")
    names = (MADE, f"{other}:made", "lr-b5-T5")
    labels = [
        p.checkpoint.label
        for p in prepare(Question(probe="converge", checkpoints=names, options={"loops": 3, "states": 0}, prompts=2))
    ]
    assert labels == ["own_models-made", "changed-made", "lr-b5-T5"]
    with pytest.raises(LoopprobeError, match="give it once"):
        prepare(Question(probe="converge", checkpoints=(MADE, MADE), prompts=2))


def test_what_a_model_computes_is_part_of_its_identity(tmp_path):
    other = changed(tmp_path, "self.layer(z + e,", "self.layer(z - e,")
    one, two = (loopprobe.load_checkpoint(name).identity() for name in (MADE, f"{other}:made"))
    assert one["weights"] == two["weights"]
    assert one["source"] != two["source"]


@pytest.mark.slow
def test_other_processes_make_the_same_model_or_say_that_they_cannot(tmp_path):
    names = (MADE, f"{FILE}:seeded")
    prepared = prepare(Question(probe="converge", checkpoints=names, options={"loops": 4, "states": 0}, prompts=4))
    alone = [data.error.values for data in answer(prepared)]
    with Processes(2) as pool:
        there = [data.error.values for data in answer(prepared, pool=pool)]
    np.testing.assert_allclose(there, alone, atol=1e-6)
    with pytest.raises(LoopprobeError, match="another one each time"):
        pickle.loads(pickle.dumps(loopprobe.load_checkpoint(f"{FILE}:unseeded")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:made", "no file nowhere.py"), (f"{FILE}:seedd", "did you mean seeded"),
        (f"{FILE}:broken", "raises ValueError (no such weights)"), (f"{FILE}:without_task", "with_task(loopprobe.wrap"),
        (f"{FILE}:Loop", "with_task(loopprobe.wrap"), ("no_such_package.models:made", "no module no_such_package"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_said_in_one_line(name, message):
    with pytest.raises(LoopprobeError) as raised:
        loopprobe.load_checkpoint(name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(LoopprobeError, match="language models"):
        loopprobe.load_checkpoint(name, dtype="float16")


def test_the_place_that_is_asked_for_is_where_transformer_lens_has_it():
    with pytest.raises(LoopprobeError, match=r"sites=\{'attn\.hook_q': …\}"):
        probe("patch", loopprobe.load_checkpoint(MADE), 4, sites=("q",))


def test_names_of_files_are_told_from_others():
    assert all(map(is_own, (MADE, "a.py:b", "dir/a.py:b.c", "package.module:name", "./x y.py:z")))
    assert not any(
        map(is_own, ("hf:name", "hf:a/b", "lr-b20-T10", "runs/x", "a.py", "a.py:", "dir/a:b", "c:\\x", "5:b"))
    )


@pytest.mark.parametrize(
    ("name", "site"), [("patch", "attn.hook_z"), ("ablate", "attn.hook_z"), ("edges", "attn.hook_z")]
)
def test_activations_that_a_module_does_not_show_are_asked_for_by_name(name, site):
    with pytest.raises(LoopprobeError) as raised:
        probe(name, loopprobe.load_checkpoint(MADE), 4)
    assert "needs attn_z, which the model does not show: " in str(raised.value)
    assert f"sites={{'{site}': …}}" in str(raised.value)
    assert "\n" not in str(raised.value)
    if name == "patch":
        assert "choose from readout, resid_post, resid_pre, z, z_pre" in str(raised.value)
        assert "resid_post" in probe("patch", loopprobe.load_checkpoint(MADE), 4, sites=("resid_post",), loops=2)
