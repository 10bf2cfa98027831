import numpy as np
import pandas as pd
import pytest
import torch

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks import held_out, sample
from loopprobe.tasks.tables import BUNDLED, from_tables, load_table


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_tables_can_be_read(name):
    table = load_table(name)
    values, labels, filled = table.arrays(10)
    train = table.half("train")
    assert filled == min(10, len(table.columns))
    assert values.shape == (len(labels), 10)
    np.testing.assert_allclose(values[train][:, :filled].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(values[train][:, :filled].std(0), 1, atol=1e-6)
    assert (table.n_classes > 0) == (name in ("wine", "breast_cancer", "iris", "digits"))
    if not table.n_classes:
        assert labels[train].std() == pytest.approx(1)


def test_halves_share_no_row_and_prompts_repeat_none():
    table = load_table("diabetes")
    assert not set(table.half("train")) & set(table.half("test"))
    assert len(table.half("train")) + len(table.half("test")) == len(table.labels)
    values, _, _ = table.arrays(10)
    norms = np.linalg.norm(values, axis=1)  # what a rotation leaves
    for part in ("train", "test"):
        prompts = from_tables([table], 20, 31, 10, torch.Generator().manual_seed(0), part=part)
        own = np.sort(norms[table.half(part)])
        for xs in prompts.xs.double().norm(dim=-1).numpy():
            assert len(np.unique(xs.round(5))) == 31
            assert np.abs(own[:, None] - xs).min(0).max() < 1e-4


def test_inputs_are_turned_and_labels_keep_their_relation():
    prompts = from_tables([load_table("diabetes")], 8, 31, 10, torch.Generator().manual_seed(0), scale=10.0)
    fit = torch.linalg.lstsq(prompts.xs, prompts.ys[..., None]).solution
    residual = prompts.ys - (prompts.xs @ fit).squeeze(-1)
    assert residual.square().mean() < 0.6 * prompts.ys.square().mean()
    assert prompts.ys.square().mean().item() == pytest.approx(10, rel=0.25)
    assert prompts.scale == 10
    assert (fit[0] - fit[1]).abs().max() > 0.5


def test_classes_are_plus_and_minus_one():
    prompts = from_tables([load_table("iris"), load_table("wine")], 40, 31, 10, torch.Generator().manual_seed(0))
    assert set(prompts.ys.unique().tolist()) == {-1.0, 1.0}
    assert prompts.origin["labels"] == "sign"
    assert prompts.origin["columns"] == [
        "4 columns padded to 10 with zeros",
        "13 columns projected on 10 principal components",
    ]
    assert prompts.xs[..., 4:].eq(0).all(2).all(1).float().mean().item() == pytest.approx(0.5, abs=0.25)


def test_training_and_evaluation_draw_from_different_halves():
    task = TaskConfig(name="tables", tables=("iris", "wine"))
    assert task.short == "tab-iris-wine"
    train = sample(task, 3, 31, 10, torch.Generator().manual_seed(0), active_dims=5)
    assert train.origin["part"] == "train"
    assert train.xs.shape == (3, 31, 10)
    assert train.xs[..., 5:].eq(0).all()
    assert held_out(task, 3, 31, 10).origin["part"] == "test"
    with pytest.raises(LoopprobeError, match="cannot be shifted"):
        held_out(task, 3, 31, 10, shift="noise")
    with pytest.raises(LoopprobeError, match="name one or more"):
        TaskConfig(name="tables")


def frame():
    numbers = np.random.default_rng(0).normal(size=(80, 3))
    return pd.DataFrame(numbers, columns=["a", "b", "y"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_is_read(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    data = frame().assign(kind=np.where(frame()["a"] > 0, "left", "right"))
    data.to_csv(path, index=False) if suffix == ".csv" else data.to_parquet(path)
    table = load_table(str(path))
    assert (table.n_classes, table.target, table.columns) == (2, "kind", ("a", "b", "y"))
    with pytest.raises(LoopprobeError, match="column 'kind' holds text"):
        load_table(str(path), "y")


def test_bad_tables_are_named(tmp_path):
    def made(name, data):
        data.to_csv(tmp_path / f"{name}.csv", index=False)
        return str(tmp_path / f"{name}.csv")

    holes = frame()
    holes.loc[3:5, "b"] = np.nan
    no_label = frame()
    no_label.loc[3, "y"] = np.nan
    for name, data, match in [
        ("text", frame().assign(b="x"), "column 'b' holds text"),
        ("holes", holes, "column 'b' lacks 3 values"),
        ("no_label", no_label, "the label 'y' lacks 1 values"),
        ("one", frame()[["y"]], "80 rows and 1 columns"),
    ]:
        with pytest.raises(LoopprobeError, match=match):
            load_table(made(name, data))
    draw = torch.Generator().manual_seed(0)
    with pytest.raises(LoopprobeError, match="column 'b' is constant"):
        from_tables([load_table(made("flat", frame().assign(b=1.0)))], 2, 5, 4, draw)
    with pytest.raises(LoopprobeError, match="label 'y' is constant"):
        from_tables([load_table(made("same", frame().assign(y=1.0)))], 2, 5, 4, draw)
    with pytest.raises(LoopprobeError, match="has 4 rows for a prompt but a prompt takes 5"):
        from_tables([load_table(made("few", frame()[:8]))], 2, 5, 4, draw)
    with pytest.raises(LoopprobeError, match=r"no column 'z'.*a, b, y"):
        load_table(made("good", frame()), "z")
    with pytest.raises(LoopprobeError, match="no table at"):
        load_table(str(tmp_path / "nope.csv"))
    with pytest.raises(LoopprobeError, match=r"give a \.csv or \.parquet"):
        load_table("mine.txt")
    (tmp_path / "broken.csv").write_text("")
    with pytest.raises(LoopprobeError, match="cannot be read"):
        load_table(str(tmp_path / "broken.csv"))


def test_a_file_that_has_changed_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    for value in (1.0, 2.5, 3.5):
        path.write_text(f"a,y\n{value},0\n2,1\n")
        assert load_table("t.csv").inputs[0, 0] == value
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "t.csv").write_text("a,y\n7,0\n2,1\n")
    monkeypatch.chdir(tmp_path / "other")
    assert load_table("t.csv").inputs[0, 0] == 7
