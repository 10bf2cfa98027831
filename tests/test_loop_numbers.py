"""A loop that reads its number, or is edited in some loops, is no single map: what needs one map says so."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, random_model

from loopprobe import edited, freeze, masked, mean_states, probe, replace, skipped, zero
from loopprobe.dynamics.maps import LoopMap
from loopprobe.errors import LoopprobeError
from loopprobe.store.checkpoint import Checkpoint


@pytest.fixture
def numbered():
    cfg = dataclasses.replace(TINY_CFG, model=dataclasses.replace(TINY_CFG.model, loop_embedding=True))
    return Checkpoint(cfg, random_model(cfg.model, torch.float64), name="runs/numbered")


def test_it_is_no_map_of_its_state(numbered):
    assert numbered.model.supports >= {"map", "causal", "past"}
    with pytest.raises(LoopprobeError, match=r"a LoopMap needs a loop that does the same every time \(no loop emb"):
        LoopMap.of(numbered.model, numbered.held_out(2))


@pytest.mark.parametrize(
    ("name", "options", "remedy"),
    [
        ("converge", {"loops": 4, "states": 2}, "set states to 0"),
        ("recover", {"loops": 4}, "choose another"),
        ("failures", {"loops": 128}, "choose another"),
        ("fixed_points", {}, "choose another"),
    ],
)
def test_what_follows_one_map_is_refused(name, options, remedy, numbered):
    with pytest.raises(LoopprobeError, match=rf"does the same every time.*which numbered has not: {remedy}"):
        probe(name, numbered, numbered.held_out(2), **options)


def test_what_counts_its_loops_works(numbered):
    prompts = numbered.held_out(3)
    data = probe("converge", numbered, prompts, loops=6, states=0)
    with torch.no_grad():
        outputs = numbered.model(*prompts.inputs, n_loops=6)
    expected = prompts.errors(outputs)[..., -1].numpy()
    np.testing.assert_allclose(data.error.transpose("loop", "example"), expected, rtol=1e-5)
    masked = probe("mask", numbered, prompts, mode="first", n=(2, 6), loops=6)
    np.testing.assert_allclose(masked.error.sel(n=6).transpose("loop", "example"), expected, rtol=1e-5)


def to_zero(x, hook):
    return torch.zeros_like(x)


@pytest.mark.parametrize("loops", [0, [2, 3], [50], range(1, 20)])
def test_edits_of_some_loops_leave_no_map(loops, checkpoint):
    model, prompts = checkpoint.model, checkpoint.held_out(2)
    for block in (edited(model, "mlp_out", zero, loops=loops), masked(model, "first", 2, loops=loops)):
        with block:
            assert "autonomous" not in model.supports
            with pytest.raises(LoopprobeError, match="no hook in some loops alone"):
                probe("converge", checkpoint, prompts, loops=4, states=2)
    assert "autonomous" in model.supports
    with edited(model, "mlp_out", zero, loops=[-1]), pytest.raises(LoopprobeError, match="count from the end of a run"):
        probe("converge", checkpoint, prompts, loops=4, states=2, far=128)


def test_hooks_by_name_or_by_hand_are_seen(checkpoint):
    model = checkpoint.model
    with model.hooks(fwd_hooks=[("loops.3.hook_z", to_zero)]):
        assert "autonomous" not in model.supports
    with model.hooks(fwd_hooks=[("hook_embed", to_zero), (lambda name: name.endswith("hook_z"), to_zero)]):
        assert "autonomous" in model.supports
        model(*checkpoint.held_out(2).inputs)
    model.loops[3].hook_z.add_hook(to_zero)
    assert "autonomous" not in model.supports
    model.reset_hooks()
    assert "autonomous" in model.supports


@pytest.mark.parametrize("every", [slice(None), None])
def test_edits_of_all_loops_are_followed(every, checkpoint):
    model, prompts = checkpoint.model, checkpoint.held_out(3)
    with edited(model, "attn_z", zero, heads=[1], loops=every), masked(model, "last", 3, fill="zero"):
        data = probe("converge", checkpoint, prompts, loops=6, states=3, far=128)
    clean = probe("converge", checkpoint, prompts, loops=6, states=0)
    np.testing.assert_allclose(data.followed_error.transpose("loop", ...), data.error.transpose("loop", ...), rtol=1e-4)
    assert not np.allclose(clean.error, data.error)


def test_an_edit_that_asks_for_its_loop_is_refused_where_there_are_none(checkpoint):
    model, prompts = checkpoint.model, checkpoint.held_out(2)
    _, cache = model.run_with_cache(*prompts.inputs, names=["pattern", "z_pre"])
    edits = {"pattern": (freeze(2), replace(cache)), "z_pre": (replace(cache), replace(cache, {1: 2}))}
    for name, some in edits.items():
        for edit in some:
            with edited(model, name, edit), pytest.raises(LoopprobeError, match="asks for the number of its loop"):
                probe("recover", checkpoint, prompts, loops=3)
    with (
        masked(model, "first", 2, fill=mean_states(model, [prompts], 40)),
        pytest.raises(LoopprobeError, match="asks for the number of its loop"),
    ):
        probe("recover", checkpoint, prompts, loops=3)
    with skipped(model, [1]), pytest.raises(LoopprobeError, match="no hook in some loops alone"):
        probe("recover", checkpoint, prompts, loops=3)
