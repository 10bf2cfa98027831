import numpy as np
import pytest
import torch
import xarray as xr
from conftest import make_model

from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.probes import compare, folds
from loopprobe.show.figures.folds import folds_figure
from loopprobe.show.folds_rows import kind_of, rows_of
from loopprobe.show.tables.study import folds_table
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out

CONFIG = folds.FoldsConfig(tables=("iris", "wine"))


def trained_on(*tables, seed=0):
    """A small model whose configuration says that it was trained on these tables; none: on signs."""
    model = make_model(torch.float32, n_layers=1)
    torch.nn.init.normal_(model.read_out.weight, generator=torch.Generator().manual_seed(seed))
    small = {"d_model": 16, "n_heads": 2, "n_dims": 3, "n_points": 6, "n_loops": 4}
    task = ["task.name=tables", f"task.tables={list(tables)!r}"] if tables else ["task.labels=sign"]
    train = ["train.loop_window=2", "train.dims=3", "train.points=6"]
    config = load_config(overrides=[f"model.{k}={v}" for k, v in small.items()] + train + task)
    return Checkpoint(config, model, name=config.name)


@pytest.fixture(scope="module")
def answered():
    models = [trained_on("iris"), trained_on("wine", seed=1), trained_on(seed=2)]
    return [folds.run(model, model.held_out(60), CONFIG) for model in models]


def test_each_table_is_what_compare_says_of_it(answered):
    model = trained_on("iris")
    alone = compare.run(model, model.from_table("wine", None, 60), compare.CompareConfig())
    at = answered[0].sel(table="wine")
    np.testing.assert_array_equal(at.right, alone.right)
    np.testing.assert_allclose(at.accuracy, alone.accuracy)
    assert float(at.accuracy.isel(point=-1)) == float(at.right.isel(point=-1).mean())


def test_a_model_knows_which_tables_it_was_trained_on(answered):
    assert [list(data.trained_on.values) for data in answered] == [[True, False], [False, True], [False, False]]


def test_models_that_differ_by_their_tables_alone_are_folds_of_one_kind(answered):
    assert [kind_of(data) for data in answered] == ["b4-T2", "b4-T2", "lr-sign-b4-T2"]
    rows = {row.name: row.accuracy for row in rows_of(answered)}
    assert set(rows["b4-T2, left out"]) == {"iris", "wine"}
    left_out = answered[1].sel(table="iris").right.isel(point=-1).mean()  # of the model that was trained on wine
    assert rows["b4-T2, left out"]["iris"][0] == pytest.approx(float(left_out))
    assert rows["b4-T2, trained on it"]["wine"][0] == pytest.approx(
        float(answered[1].sel(table="wine").right.isel(point=-1).mean())
    )
    assert {"lr-sign-b4-T2, trained on no table", "least squares", "3 nearest neighbours"} <= set(rows)


def test_folds_that_share_a_table_are_averaged(answered):
    again = answered[0].copy()
    again["right"] = ~again.right
    rows = {row.name: row.accuracy for row in rows_of([answered[0], again])}
    assert rows["b4-T2, trained on it"]["iris"][0] == pytest.approx(0.5)


def test_the_table_and_the_figure_show_every_row(answered):
    names = [row.name for row in rows_of(answered)]
    assert [str(cell) for cell in folds_table(answered).columns[0].cells] == names
    figure = folds_figure(answered)
    assert [trace.name for trace in figure.data] == names
    assert all(np.isfinite(trace.x).all() for trace in figure.data)


def test_tables_of_numbers_are_refused():
    with pytest.raises(LoopprobeError, match="labels of diabetes are numbers, not classes: use `loopprobe compare"):
        folds.check(trained_on("iris"), folds.FoldsConfig(tables=("diabetes",)), None)
    with pytest.raises(LoopprobeError, match="no table is named"):
        folds.check(trained_on("iris"), folds.FoldsConfig(tables=()), None)


def test_models_are_scored_on_rows_that_no_training_draws_from():
    model = trained_on("iris")
    scored = model.from_table("iris", None, 40)
    assert scored.origin["part"] == "test"
    assert held_out(model.config.task, 40, 6, 3).origin["part"] == "test"


def test_the_answer_survives_a_file(answered, tmp_path):
    from loopprobe.probes.dataset import read_dataset, write_dataset

    write_dataset(answered[0], tmp_path / "folds.nc")
    back = read_dataset(tmp_path / "folds.nc")
    xr.testing.assert_allclose(back, answered[0])
    assert [row.name for row in rows_of([back])] == [row.name for row in rows_of([answered[0]])]
