import numpy as np
import pytest
import torch
from conftest import make_model

from loopprobe.cli import options
from loopprobe.config.schema import TaskConfig
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.probes import align, decode, lens, shift
from loopprobe.show.figures.shift import shift_curves_figure, shift_figure
from loopprobe.show.tables.study import shift_table
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out
from loopprobe.tasks.shifts import SHIFTS

LINEAR = TaskConfig()


def drawn(name, n=2000, points=12, dims=6, task=LINEAR):
    return held_out(task, n, points, dims, shift=name)


def test_without_a_shift_the_prompts_are_those_of_the_seed():
    assert torch.equal(drawn(None).xs, held_out(LINEAR, 2000, 12, 6).xs)
    for name in ("weights_double", "noise", "more_examples"):
        assert torch.equal(drawn(name).xs, drawn(None).xs)


@pytest.mark.parametrize("name", [name for name, shift in SHIFTS.items() if not shift.noise_std])
@pytest.mark.parametrize("task", [LINEAR, TaskConfig(name="relu_network"), TaskConfig(name="decision_tree")], ids=str)
def test_predicting_zero_has_an_error_of_one_under_every_shift(name, task):
    prompts = drawn(name, 6000, 4, 6, task)
    assert prompts.errors(torch.zeros_like(prompts.ys))[:, -1].mean().item() == pytest.approx(1, abs=0.15)


def test_each_shift_is_what_its_name_says():
    spectrum = torch.linalg.svdvals(drawn("skewed", points=400, n=50).xs.double()).square().mean(0)
    assert (spectrum[0] / spectrum[-1]).item() == pytest.approx(36, rel=0.3)
    assert drawn("skewed").xs.square().sum(-1).mean().item() == pytest.approx(6, rel=0.05)
    inside = drawn("subspace")
    assert torch.linalg.matrix_rank(inside.xs.double(), rtol=1e-5).eq(3).all()
    xs = drawn("orthogonal_query").xs
    assert (xs[:, :-1] @ xs[:, -1:].mT).abs().max() < 1e-5
    xs = drawn("orthants").xs
    assert (xs[:, :-1].sign() == xs[:, :1].sign()).all()
    assert (xs[:, -1].sign() != xs[:, 0].sign()).float().mean().item() == pytest.approx(0.5, abs=0.03)
    prompts = drawn("repeated_query")
    same = (prompts.xs[:, :-1] == prompts.xs[:, -1:]).all(-1)
    assert same.sum(1).eq(1).all()
    torch.testing.assert_close(prompts.ys[:, :-1][same], prompts.ys[:, -1])
    assert torch.equal(drawn("inputs_double").xs, 2 * drawn(None).xs)
    torch.testing.assert_close(drawn("weights_triple").ys, 3 * drawn(None).ys)
    noise = (drawn("noise").ys - drawn(None).ys).std().item()
    assert noise == pytest.approx(0.3 * 6**0.5, rel=0.03)


def test_fewer_prompts_of_a_shift_are_the_first_of_more():
    for name in SHIFTS:
        assert torch.equal(drawn(name, 5).xs, drawn(name, 9).xs[:5])


def narrow():
    """A model that has seen fewer points and dimensions than it can read."""
    config = load_config(
        overrides=[
            f"model.{k}={v}" for k, v in {"d_model": 16, "n_heads": 2, "n_dims": 3, "n_points": 6, "n_loops": 4}.items()
        ]
        + ["train.loop_window=2", "train.dims=2", "train.points=4"]
    )
    return Checkpoint(config, make_model(torch.float32, n_layers=1), name="narrow")


def test_more_than_in_training_needs_a_model_that_can_read_it(checkpoint):
    assert {"more_examples", "more_dims"} <= set(shift.applicable(narrow()))
    assert not {"more_examples", "more_dims"} & set(shift.applicable(checkpoint))
    with pytest.raises(LoopprobeError, match="trained with all the 6 points"):
        shift.check(checkpoint, shift.ShiftConfig(shifts=("more_dims",)), checkpoint.held_out(2))
    usual, more = narrow().held_out(3), narrow().held_out(3, shift="more_examples")
    assert usual.xs.shape == (3, 4, 3)
    assert usual.xs[..., 2:].eq(0).all()
    assert more.xs.shape == (3, 6, 3)
    assert narrow().held_out(3, shift="more_dims").xs[..., 2:].ne(0).all()
    assert narrow().config.name == "lr-b4-T2-2dims-4points"


def test_the_probe_measures_every_shift(checkpoint):
    prompts = checkpoint.held_out(70)
    data = shift.run(checkpoint, prompts, shift.ShiftConfig(shifts=("noise", "orthants")))
    assert list(data["shift"].values) == ["as in training", SHIFTS["noise"].words, SHIFTS["orthants"].words]
    noisy = checkpoint.held_out(70, shift="noise")
    with torch.no_grad():
        expected = noisy.errors(checkpoint.model(*noisy)).numpy()
    np.testing.assert_allclose(data.error[1], expected[..., -1], rtol=1e-4)
    np.testing.assert_allclose(data.median_by_point[1], np.median(expected[-1], 0), rtol=1e-4)
    assert data.median_by_point[2].isnull().all()
    with pytest.raises(LoopprobeError, match="leave out shift"):
        shift.run(checkpoint, noisy, shift.ShiftConfig())


def test_figures_and_table_of_models_with_different_shifts(checkpoint):
    models = [checkpoint, narrow()]
    data = [shift.run(one, one.held_out(20), shift.ShiftConfig()) for one in models]
    assert {trace.name for trace in shift_figure(data).data} == {"tiny", "narrow"}
    curves = shift_curves_figure(data)
    titles = [note.text for note in curves.layout.annotations]
    assert "more examples than in training" in titles
    assert SHIFTS["orthants"].words not in titles
    table = shift_table(data)
    assert len(table.rows) == len(SHIFTS) + 1
    medians = [one["median"].isel(shift=0) for one in data]
    level = max(float(median[-1]) for median in medians)
    nearest = [int(np.abs(np.log(median.values / level)).argmin()) + 1 for median in medians]
    twice = sum(loop != int(median.loop[-1]) for loop, median in zip(nearest, medians, strict=True))
    assert [column.header for column in table.columns[2::2]] == ["fail"] * (2 + twice)  # a better one comes twice
    assert "–" in list(table.columns[1].cells)


@pytest.mark.parametrize(
    ("probe", "config"),
    [
        (lens, lens.LensConfig(train_prompts=40)),
        (decode, decode.DecodeConfig(train_prompts=40, network_loops=1, network_steps=2)),
        (align, align.AlignConfig(steps=4, fit_prompts=20)),
    ],
    ids=["lens", "decode", "align"],
)
def test_probes_that_are_fitted_read_prompts_longer_than_in_training(probe, config):
    model = narrow()
    prompts = model.held_out(20, shift="more_examples")
    data = probe.run(model, prompts, config)
    assert all(np.isfinite(data[name]).any() for name in data.data_vars)
    assert model.more_like(prompts, 5, 1).ys.shape == (5, 6)
    assert model.more_like(model.held_out(3), 5, 1).ys.shape == (5, 4)


def test_the_help_names_every_shift():
    assert options.SHIFTS.split(", ") == list(SHIFTS)
