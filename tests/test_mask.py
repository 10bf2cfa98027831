import json

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import TINY_CFG

from loopprobe.errors import LoopprobeError
from loopprobe.model.masks import masked, mean_states
from loopprobe.probes import mask as probe
from loopprobe.probes.dataset import read_dataset, write_dataset
from loopprobe.show import sentences
from loopprobe.show.arrange import loops_to_show
from loopprobe.show.figures.mask import mask_figure
from loopprobe.show.figures.pages import write_html
from loopprobe.show.tables.study import mask_table
from loopprobe.tasks import held_out


@pytest.fixture
def batch():
    return held_out(TINY_CFG.task, 80, 6, 3)  # more than one chunk


def test_every_number_is_that_of_a_run_of_its_own(checkpoint, batch):
    data = probe.run(checkpoint, batch, probe.MaskConfig(mode="last", n=(0, 2, 5), loops=7))
    assert data.sizes == {"n": 3, "loop": 7, "example": 80, "point": 6}
    for n in (0, 2, 5):
        with torch.no_grad(), masked(checkpoint.model, "last", n):
            squared = (checkpoint.model(batch.xs, batch.ys, 7) - batch.ys).square().numpy() / 3
        np.testing.assert_allclose(data.error.sel(n=n), squared[..., -1], atol=1e-5)
        np.testing.assert_allclose(data.error_by_point.sel(n=n), squared.mean(1), atol=1e-5)
        np.testing.assert_allclose(data["mean"].sel(n=n), squared[..., -1].mean(1), atol=1e-5)
    with torch.no_grad():
        clean = (checkpoint.model(batch.xs, batch.ys, 7) - batch.ys).square().numpy() / 3
    np.testing.assert_allclose(data.clean_error, clean[..., -1], atol=1e-5)
    assert (data.median_low <= data["median"]).all()
    assert (data["median"] <= data.median_high).all()


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("mode", ["first", "last"])
def test_masks_are_the_same_by_torchs_attention(checkpoint, batch, monkeypatch, mode, invert):
    """It runs on GPUs and for long prompts, and takes its causal mask to begin with the first key."""
    config = probe.MaskConfig(mode=mode, n=(0, 1, 4, 6), loops=4, invert=invert)
    assert checkpoint.model.cfg.n_layers > 1
    written_out = probe.run(checkpoint, batch[:5], config)
    monkeypatch.setattr("loopprobe.model.blocks.SHORT", 0)
    np.testing.assert_allclose(probe.run(checkpoint, batch[:5], config).error, written_out.error, atol=1e-5)


@pytest.mark.parametrize("fill", ["initial", "zero", "mean"])
@pytest.mark.parametrize(("unit", "n"), [("point", (0, 1, 4, 6)), ("token", (0, 1, 2, 7, 11, 12))])
@pytest.mark.parametrize("at", [None, 2])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("mode", ["first", "last"])
def test_computing_only_what_a_mask_reaches_changes_nothing(checkpoint, batch, mode, invert, at, unit, n, fill):
    config = probe.MaskConfig(
        mode=mode, n=n, loops=4, unit=unit, invert=invert, fill=fill, once=at is not None, at=at
    )  # fmt: skip
    batch = batch[:5]
    data = probe.run(checkpoint, batch, config)
    value = mean_states(checkpoint.model, [batch], 4) if fill == "mean" else fill
    loops = None if at is None else [at]
    for count in n:
        context = masked(checkpoint.model, mode, count, unit=unit, invert=invert, fill=value, loops=loops)
        with torch.no_grad(), context:
            squared = batch.errors(checkpoint.model(*batch, 4)).numpy()
        np.testing.assert_allclose(data.error_by_point.sel(n=count), squared.mean(1), atol=1e-5)


@pytest.mark.parametrize("fill", ["initial", "zero", "mean"])
def test_all_points_kept_is_the_clean_run(checkpoint, batch, fill):
    data = probe.run(checkpoint, batch, probe.MaskConfig(n=(6,), loops=4, fill=fill))
    np.testing.assert_array_equal(data.error.isel(n=0), data.clean_error)
    inverted = probe.run(checkpoint, batch, probe.MaskConfig(n=(0,), loops=4, fill=fill, invert=True))
    np.testing.assert_array_equal(inverted.error.isel(n=0), inverted.clean_error)


def test_masking_once_leaves_the_loops_before_alone(checkpoint, batch):
    data = probe.run(checkpoint, batch, probe.MaskConfig(n=(2,), loops=6, once=True, at=4))
    np.testing.assert_allclose(data.error.isel(n=0)[:4], data.clean_error[:4], atol=1e-6, rtol=1e-5)
    assert not np.isclose(data.error.isel(n=0)[4], data.clean_error[4]).any()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": (10,)}, "keeping the state of the first 10 of 31 points, 20 of 62 tokens; the rest is reset"),
        ({"n": tuple(range(32))}, "first n of 31 points, 2n of 62 tokens (n = 0 to 31)"),
        ({"n": (5, 10), "mode": "last", "unit": "token"}, "last n of 62 tokens (n = 5, 10)"),
        ({"n": (3,), "invert": True}, "masking the state of the first 3 of 31 points, 6 of 62 tokens;"),
        ({"n": (3,), "fill": "mean"}, "in the clean run before every loop; the injected"),
        ({"n": (3,), "fill": "zero", "once": True}, "set to zero once, after 20 loops; the injected input stays"),
    ],
)  # fmt: skip
def test_words_say_what_was_kept(fields, words):
    at = 20 if "once" in fields else None
    assert words in probe.describe(probe.MaskConfig(**fields), held_out(TINY_CFG.task, 1, 31, 3), at)


def test_a_dataset_survives_the_disk_with_its_provenance(checkpoint, batch, tmp_path):
    data = probe.run(checkpoint, batch, probe.MaskConfig(n=(2, 4), loops=3))
    write_dataset(data, tmp_path / "mask.nc")
    back = read_dataset(tmp_path / "mask.nc")
    xr.testing.assert_identical(back, data)
    assert json.loads(back.attrs["config"])["n"] == [2, 4]
    assert json.loads(back.attrs["prompts"])["held_out_seed"] == 0
    assert json.loads(back.attrs["checkpoint"])["config"]["model"]["d_model"] == 16
    assert "torch" in json.loads(back.attrs["provenance"])
    assert [path.name for path in tmp_path.iterdir()] == ["mask.nc"]
    (tmp_path / "no.nc").write_text("no")
    with pytest.raises(LoopprobeError, match="no netCDF"):
        read_dataset(tmp_path / "no.nc")


def test_masks_that_do_not_fit_are_refused_before_anything_runs(checkpoint, batch):
    with pytest.raises(LoopprobeError, match=r"n \(7\).*6 points"):
        probe.run(checkpoint, batch, probe.MaskConfig(n=(7,)))
    with pytest.raises(LoopprobeError, match="n is empty"):
        probe.MaskConfig(n=())
    with pytest.raises(LoopprobeError, match="after 9 loops but only 8"):
        probe.run(checkpoint, batch, probe.MaskConfig(n=(2,), loops=8, once=True, at=9))
    with pytest.raises(LoopprobeError, match="goes with once"):
        probe.MaskConfig(at=3)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        ((2,), lambda data: {"n = 2": data["median"].sel(n=2)}),
        (tuple(range(7)), lambda data: {f"{loop} loops": data["median"].sel(loop=loop) for loop in (4, 5, 6)}),
    ],
    ids=["over loops", "over n"],
)
def test_the_figure_draws_the_numbers_of_the_dataset(checkpoint, batch, n, expected, tmp_path):
    data = probe.run(checkpoint, batch, probe.MaskConfig(n=n, loops=6))
    figure = mask_figure(data)
    lines = {trace.name: trace for trace in figure.data if trace.name and trace.mode != "none"}
    np.testing.assert_allclose(lines["clean run"].y, data.clean_median)
    for name, means in expected(data).items():
        np.testing.assert_allclose(lines[name].y, means, err_msg=name)
    assert all(np.isfinite(np.asarray(trace.y, float)).all() for trace in figure.data)
    write_html(figure, tmp_path / "mask.html")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.html"]


@pytest.mark.parametrize("mode", ["first", "last"])
@pytest.mark.parametrize("invert", [False, True])
def test_the_order_of_n_does_not_matter(checkpoint, batch, mode, invert):
    """Masks of many n go through together, in an order of their own."""
    data = probe.run(checkpoint, batch, probe.MaskConfig(mode=mode, n=(5, 0, 6, 1, 3), loops=4, invert=invert))
    for n in (5, 0, 6, 1, 3):
        alone = probe.run(checkpoint, batch, probe.MaskConfig(mode=mode, n=(n,), loops=4, invert=invert))
        np.testing.assert_allclose(data.error.sel(n=n), alone.error.sel(n=n), atol=1e-6)


def test_the_table_and_the_sentence_show_the_numbers_of_the_dataset(checkpoint, batch):
    data = probe.run(checkpoint, batch, probe.MaskConfig(n=(0, 3), loops=6))
    table = mask_table(data.assign_attrs(shown_loops=[1, 6]))
    assert [column.header for column in table.columns] == ["n", "1 loop", "6 loops", "fail", "mean"]
    last = list(table.columns[2].cells)
    assert last[0].startswith(f"{data.clean_median[-1].item():.3g} [{data.clean_median_low[-1].item():.3g},")
    assert last[2].startswith(f"{data['median'].sel(n=3, loop=6).item():.3g} [")
    failing = float((data.error.sel(n=3, loop=6) > 0.1).mean())
    assert list(table.columns[3].cells)[2].startswith(f"{100 * failing:.2g} % [")
    assert list(table.columns[4].cells)[2] == f"{data.error.sel(n=3, loop=6).mean().item():.3g}"
    assert f"{data.clean_median[-1].item():.3g} in the clean run" in sentences.mask(data)
    assert loops_to_show(data) == [1, 4, 5, 6]
