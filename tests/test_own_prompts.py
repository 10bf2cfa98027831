"""Prompts, corrupted prompts and metrics of the user's own, and prompts of tasks without weights."""

import numpy as np
import pytest
import torch
from conftest import TINY_CFG

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.probes import align, compare, converge, decode, lens, patch, paths, recover, shift
from loopprobe.probes.session import probe
from loopprobe.reference.baselines.optimal import UNKNOWN, optimum
from loopprobe.study.decisions import held
from loopprobe.study.rules import below
from loopprobe.support.statistics import bootstrap_mean, bootstrap_ratio, correlation
from loopprobe.tasks import Prompts, held_out

FITTED = {
    "decode": {"network_loops": 1, "network_steps": 3},
    "align": {"steps": 4},
    "lens": {},
    "steer": {"loops": 2, "strengths": (1.0,)},
    "features": {"loops": 2, "n_features": 8, "k": 2, "steps": 3, "top": 1},
    "ablate": {"methods": ("optimal",), "agreement": False, "fit_steps": 2, "loops": 2},
}


def absolute(n, seed, points=6):
    """Prompts of y = |w·x|, whose origin says nothing."""
    linear = held_out(TaskConfig(), n, points, 3, seed)
    return Prompts(linear.xs, linear.ys.abs())


@pytest.mark.parametrize("name", FITTED)
def test_what_is_fitted_does_not_come_from_another_task(name, checkpoint):
    with pytest.raises(LoopprobeError, match="training="):
        probe(name, checkpoint, absolute(4, 0), **FITTED[name])
    data = probe(name, checkpoint, absolute(4, 0), training=absolute(30, 1), **FITTED[name])
    assert data.attrs["fitted_on"] == "30 given prompts"
    other = probe(name, checkpoint, absolute(4, 0), training=absolute(30, 2), **FITTED[name])
    assert not data.drop_attrs().identical(other.drop_attrs()), "it is fitted on what is given"
    with pytest.raises(LoopprobeError, match="5 points"):
        probe(name, checkpoint, absolute(4, 0), training=absolute(30, 1, points=5), **FITTED[name])


def test_the_optimum_of_unknown_prompts_is_unknown(checkpoint):
    prompts = absolute(4, 0)
    name, best = optimum(prompts, TINY_CFG.task)
    assert name == UNKNOWN
    assert best.isnan().all()
    for module, config in ((compare, compare.CompareConfig()), (converge, converge.ConvergeConfig(loops=3, states=0))):
        data = module.run(checkpoint, prompts, config)
        assert data.attrs["optimum"] == UNKNOWN
        assert data.optimum.isnull().all()
        assert data["mean"].notnull().all()
    tree = held_out(TaskConfig(name="decision_tree"), 4, 6, 3)
    assert optimum(tree, TINY_CFG.task)[0] == UNKNOWN
    assert optimum(held_out(TINY_CFG.task, 4, 6, 3, shift="skewed"), TINY_CFG.task)[0] == "least squares"


def test_shifts_start_from_known_prompts(checkpoint):
    with pytest.raises(LoopprobeError, match="as in training"):
        shift.run(checkpoint, absolute(4, 0), shift.ShiftConfig())


@pytest.mark.parametrize("with_weights", ["training", "prompts", "neither"])
def test_decoding_works_without_weights(with_weights, checkpoint):
    training, prompts = held_out(TaskConfig(), 30, 6, 3, 1), held_out(TaskConfig(), 6, 6, 3)
    bare = {"training": prompts, "prompts": training}
    for name, part in bare.items():
        if with_weights != name:
            object.__setattr__(training if part is training else prompts, "weights", None)
    config = decode.DecodeConfig(network_loops=1, network_steps=3)
    data = decode.run(checkpoint, prompts, config, training=training)
    assert "w, true" not in data.target.values
    assert "w, true" not in data["of"].values
    assert "w, least squares" in data["of"].values


def test_decoding_shows_progress_for_networks_and_the_causal_check(checkpoint):
    lengths = []

    def progress(steps):
        lengths.append(len(steps))
        yield from steps

    config = decode.DecodeConfig(train_prompts=70, network_loops=1, network_steps=5)
    decode.run(checkpoint, checkpoint.held_out(6), config, progress)
    assert 6 * 5 in lengths, "the steps of six networks"
    assert 600 in lengths, "the network of the causal check"
    assert 4 in lengths, "its edited runs"


def test_patching_takes_corrupted_prompts_and_a_measure(checkpoint):
    clean, corrupted = absolute(5, 0), absolute(5, 1)
    config = patch.PatchConfig(sites=("z",), loops=2, positions=(-2, 3))
    data = patch.run(checkpoint, clean, config, corrupted=corrupted)
    with torch.no_grad():
        expected = checkpoint.model(*corrupted, 2)[-1, :, -1]
    np.testing.assert_allclose(data.corrupted, expected, atol=1e-6)
    assert list(data.position.values) == [10, 3]
    np.testing.assert_allclose(data.z.sel(loop=2, position=10), 1, atol=1e-5)
    tripled = patch.run(
        checkpoint, clean, config, corrupted=corrupted, measure=lambda outputs, prompts: 3 * outputs[:, -1] + 1
    )
    np.testing.assert_allclose(tripled.clean, 3 * data.clean + 1, rtol=1e-5)
    np.testing.assert_allclose(tripled.z, data.z, atol=1e-5)
    np.testing.assert_allclose(tripled.z_attribution, data.z_attribution, atol=1e-5)
    squares = probe(
        "patch",
        checkpoint,
        clean,
        sites=["z"],
        loops=2,
        corrupted=corrupted,
        measure=lambda outputs, prompts: outputs[:, -1].square(),
    )
    np.testing.assert_allclose(squares.clean, data.clean**2, rtol=1e-5)
    for options, message in (
        ({}, "corrupted="),
        ({"corrupted": absolute(4, 1)}, "of the same shape"),
        ({"corrupted": corrupted, "measure": lambda outputs, prompts: outputs.mean()}, "one number for each"),
        ({"corrupted": corrupted, "measure": lambda outputs, prompts: outputs[:, -1].detach()}, "differentiable"),
    ):
        with pytest.raises(LoopprobeError, match=message):
            patch.run(checkpoint, clean, config, **options)


@pytest.mark.parametrize("module", [patch, recover, paths], ids=lambda module: module.__name__.rsplit(".")[-1])
def test_positions_are_those_of_the_prompts(module, checkpoint):
    options = {patch: {"loops": 2, "sites": ("z",)}, recover: {"loops": 2}, paths: {"loops": 128}}[module]
    config = {patch: patch.PatchConfig, recover: recover.RecoverConfig, paths: paths.PathsConfig}[module]
    short = checkpoint.held_out(3)
    short = Prompts(short.xs[:, :4], short.ys[:, :4], short.origin)
    data = module.run(checkpoint, short, config(positions=(-2, 6, 0, -8), **options))
    assert [p for p in data.position.values if p >= 0] == [6, 0], "each token once"
    for position in (8, 10, -9):  # the model reads ten tokens, but these prompts have eight
        with pytest.raises(LoopprobeError, match=f"position {position} must be (at most|below)"):
            module.run(checkpoint, short, config(positions=(position,), **options))
        with pytest.raises(LoopprobeError, match=f"position {position} must be (at most|below)"):
            module.check(checkpoint, config(positions=(position,), **options), short)
    with pytest.raises(LoopprobeError, match="empty"):
        module.check(checkpoint, config(positions=(), **options), short)


def test_one_prompt_has_no_interval_and_no_warning(checkpoint):
    data = patch.run(checkpoint, checkpoint.held_out(1), patch.PatchConfig(sites=("z",), loops=2))
    assert data.z.notnull().all()
    assert data.z_low.isnull().all()
    mean, low, high = bootstrap_mean(np.array([[2.0], [3.0]]))
    assert mean.tolist() == [2, 3]
    assert np.isnan([low, high]).all()
    assert held((low[0], high[0]), below(2)) == "undecided"
    assert np.isnan(bootstrap_ratio(np.zeros((2, 5)), np.zeros(5))).all()
    assert np.isnan(correlation(np.ones(1), np.ones(1)))
    assert correlation(np.arange(4.0), -np.arange(4.0)) == pytest.approx(-1)


def test_every_probe_checks_in_its_run(checkpoint):
    with pytest.raises(LoopprobeError, match="'nope'"):
        compare.run(checkpoint, checkpoint.held_out(2), compare.CompareConfig(baselines=("nope",)))


def test_baselines_are_remembered_for_a_few_prompts_only(
    checkpoint,
):
    config = compare.CompareConfig(baselines=("averaging",), loops=1)
    first = compare.run(checkpoint, checkpoint.held_out(2, 0), config)
    for seed in range(compare.MOST_ANSWERS + 5):
        compare.run(checkpoint, checkpoint.held_out(2, seed), config)
    assert len(compare._ANSWERS) == compare.MOST_ANSWERS
    again = compare.run(checkpoint, checkpoint.held_out(2, 0), config)
    assert again.drop_attrs().identical(first.drop_attrs())


def test_modules_that_fit_are_those_that_are_tested():
    from loopprobe.probes.registry import PROBES

    assert {name for name, one in PROBES.items() if "training" in one.given} == set(FITTED)
    assert all(module.run.__kwdefaults__ == {"training": None} for module in (align, decode, lens))
