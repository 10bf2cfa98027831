import numpy as np
import pytest
import torch
import xarray as xr
from conftest import TINY, make_model

from loopprobe.config.sources import load_config
from loopprobe.config.strict import build
from loopprobe.errors import LoopprobeError
from loopprobe.probes import compare, converge
from loopprobe.probes.dataset import read_dataset, write_dataset
from loopprobe.probes.questions import Question, answer, prepare
from loopprobe.reference.baselines.closed import least_squares, ridge
from loopprobe.show.figures.compare import compare_figure
from loopprobe.show.figures.converge import converge_figure
from loopprobe.show.figures.panels import Line, draw, panels
from loopprobe.show.figures.style import loop_colour
from loopprobe.show.tables.study import compare_table, converge_table
from loopprobe.store.checkpoint import Checkpoint, save

SHAPE = [f"model.{key}={value}" for key, value in TINY.items()] + ["train.dims=3", "train.points=6"]


def tiny(name="tiny", *overrides, **fields):
    cfg = load_config(overrides=[*SHAPE, "train.loop_window=2", *overrides])
    return Checkpoint(cfg, make_model(torch.float32, n_loops=cfg.model.n_loops, **fields), name=name)


def error_of(checkpoint, prompts, loops):
    with torch.no_grad():
        return ((checkpoint.model(prompts.xs, prompts.ys, loops) - prompts.ys).square() / 3).numpy()


def test_converge_measures_the_error_after_every_loop():
    checkpoint = tiny()
    prompts = checkpoint.held_out(70)
    data = converge.run(checkpoint, prompts, converge.ConvergeConfig(loops=9, states=0))
    expected = error_of(checkpoint, prompts, 9)
    np.testing.assert_allclose(data.error, expected[..., -1], atol=1e-5)
    np.testing.assert_allclose(data.error_by_point, expected.mean(1), atol=1e-5)
    np.testing.assert_allclose(data["mean"], expected[..., -1].mean(1), atol=1e-5)
    best = (least_squares(prompts) - prompts.ys).square() / 3
    np.testing.assert_allclose(data.optimum, best[:, -1])
    np.testing.assert_allclose(data.optimum_by_point, best.mean(0))


def test_compare_measures_the_error_at_every_point():
    checkpoint = tiny("noisy", "task.name=noisy_linear_regression")
    prompts = checkpoint.held_out(70)
    data = compare.run(checkpoint, prompts, compare.CompareConfig())
    np.testing.assert_allclose(data.error, error_of(checkpoint, prompts, 4)[-1], atol=1e-5)
    np.testing.assert_allclose(data["mean"], data.error.mean("example"), rtol=1e-5)
    np.testing.assert_allclose(data.optimum, (ridge(prompts, 0.1**2) - prompts.ys).square() / 3)
    assert data.attrs["parameters"] == sum(p.numel() for p in checkpoint.model.parameters())
    longer = compare.run(checkpoint, prompts, compare.CompareConfig(loops=7))
    np.testing.assert_allclose(longer.error, error_of(checkpoint, prompts, 7)[-1], atol=1e-5)


def test_a_model_that_is_not_looped_cannot_converge():
    ordinary = tiny("ordinary", "model.n_loops=1", "train.loop_window=1")
    with pytest.raises(LoopprobeError, match="ordinary is not looped"):
        converge.run(ordinary, ordinary.held_out(3), converge.ConvergeConfig(states=0))


def test_a_question_is_checked_before_anything_runs(tmp_path):
    for name in ("tiny", "other"):
        (tmp_path / name).mkdir()
        save(tiny(), tmp_path / name)
    path, other = str(tmp_path / "tiny"), str(tmp_path / "other")
    good = build(Question, {"probe": "compare", "checkpoints": (path, other), "prompts": 5})
    assert [data.sizes["example"] for data in answer(prepare(good))] == [5, 5]
    for tree, match in [
        ({"probe": "nope"}, "'nope'.*compare, converge, curves, .*mask"),
        ({"probe": "mask", "checkpoints": (path,), "options": {"n": (7,)}}, r"n \(7\)"),
        ({"probe": "mask", "checkpoints": (path,), "options": {"m": 3}}, "unknown config key 'm'"),
        ({"probe": "converge", "checkpoints": (path, "nope")}, "'nope'"),
    ]:
        with pytest.raises(LoopprobeError, match=match):
            prepare(build(Question, tree))


def datasets_of(probe, config, *checkpoints):
    return [probe.run(checkpoint, checkpoint.held_out(20), config) for checkpoint in checkpoints]


def models():
    return [
        tiny("b2", "model.n_loops=2"),
        tiny("b4-T2"),
        tiny("b4-T4", "train.loop_window=4"),
        tiny("ordinary", "model.n_loops=1", "train.loop_window=1"),
    ]


def test_a_model_stands_in_the_panel_of_its_window():
    found = panels(datasets_of(compare, compare.CompareConfig(), *models()))
    named = {title: [line.name for line in lines] for title, lines in found.items()}
    assert named == {"T = 2": ["b2", "b4-T2", "ordinary"], "T = min(4, b)": ["b2", "b4-T4", "ordinary"]}


def test_panels_name_their_tasks_where_there_are_several():
    noisy = tiny("noisy", "task.name=noisy_linear_regression")
    found = panels(datasets_of(compare, compare.CompareConfig(), tiny(), noisy))
    assert list(found) == ["linear regression, T = 2", "noisy, T = 2"]


def test_seeds_are_drawn_where_all_of_them_have_a_value():
    one = xr.Dataset({"loss": ("step", [4.0, 3.0, 2.0])}, {"step": [10, 20, 30]})
    two = xr.Dataset({"loss": ("step", [6.0, 9.0, 5.0, 4.0])}, {"step": [10, 13, 20, 30]})  # stopped at 13, and gone on
    figure = draw({"panel": [Line("b", (one, two), "black", "solid")]}, "step", lambda data: data.loss)
    (line,) = (trace for trace in figure.data if trace.name == "b" and trace.fill is None)
    assert (list(line.x), list(line.y)) == ([10, 20, 30], [5.0, 4.0, 3.0])


def test_panels_by_loss_hold_models_that_differ_in_it():
    log = [tiny(f"log-{seed}", "train.loss=log", f"train.seed={seed}") for seed in (0, 1)]
    found = panels(datasets_of(compare, compare.CompareConfig(), *models()[1:3], *log), "loss")
    named = {title: [(line.name, len(line.datasets)) for line in lines] for title, lines in found.items()}
    assert named == {"b = 4, T = 2": [("loss = log", 2), ("loss = mse", 1)], "b = 4, T = 4": [("loss = mse", 1)]}


def test_figures_and_tables_show_the_numbers_of_the_datasets():
    compared = datasets_of(compare, compare.CompareConfig(), *models())
    converged = datasets_of(converge, converge.ConvergeConfig(loops=12, states=0), *models()[:3])
    for figure, datasets in ((compare_figure(compared), compared), (converge_figure(converged), converged)):
        lines = {trace.name: trace for trace in figure.data if trace.name}
        for data in datasets:
            np.testing.assert_allclose(lines[data.model.item()].y, data["median"])
        entries = [trace.name for trace in figure.data if trace.showlegend]
        assert len(entries) == len(set(entries))
        assert all(np.isfinite(np.asarray(trace.y, float)).all() for trace in figure.data)
        colours = {trace.name: trace.line.color for trace in figure.data if trace.name}
        assert colours["b2"] == loop_colour(2)
        assert colours["b4-T2"] == colours["b4-T4"] == loop_colour(4)
    row = converge_table([data.assign_attrs(shown_loops=[4, 12]) for data in converged])
    assert next(iter(row.columns[1].cells)).startswith(f"{converged[0]['median'].sel(loop=4).item():.3g} [")
    assert len(compare_table(compared).rows) == 5  # the optimum beside the four models


def test_several_tasks_have_an_optimum_each_also_when_read_from_disk(tmp_path):
    noisy = tiny("noisy", "task.name=noisy_linear_regression")
    datasets = datasets_of(compare, compare.CompareConfig(baselines=("nearest",)), tiny("plain"), noisy)
    kept = []
    for i, data in enumerate(datasets):
        write_dataset(data, tmp_path / f"{i}.nc")
        kept.append(read_dataset(tmp_path / f"{i}.nc"))
    for found in (datasets, kept):
        first = [cell.split(",")[0] for cell in compare_table(found).columns[0].cells]
        assert first == [
            "plain", "noisy", "least squares (linear regression)", "3 nearest neighbours (linear regression)",
            "ridge (0.1²) (noisy)", "3 nearest neighbours (noisy)",
        ]  # fmt: skip
