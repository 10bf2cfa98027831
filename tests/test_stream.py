import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model

from loopprobe import edited, masked, zero
from loopprobe.errors import LoopprobeError
from loopprobe.model.stream import CacheConfig, open_cache, stream_cache


def test_a_file_holds_what_a_cache_in_memory_holds(model, prompts, tmp_path):
    choice = {"loops": (0, 2, 5), "positions": (0, 11), "names": ("resid_post", "pattern", "z", "readout", "embed")}
    stream_cache(model, prompts, tmp_path / "cache.nc", CacheConfig(**choice), attrs={"made": "here"})
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, 6, **choice)
    data = open_cache(tmp_path / "cache.nc")
    assert data.attrs == {"made": "here"}
    for name, values in cache.to_xarray().items():
        assert data[name].dims == values.dims
        assert (data[name].values == values.values).all(), name
    assert (
        data.embed.values
        == model.run_with_cache(*prompts, 1, names="embed", positions=[0, 11])[1]["hook_embed"].numpy()
    ).all()
    for axis in ("loop", "layer", "position", "query", "key", "head", "point"):
        assert axis in data.coords
    assert model.list_hooks() == {}


KILLED = """
import sys
from pathlib import Path
import torch
from conftest import make_model
from loopprobe.model.stream import CacheConfig, stream_cache
from loopprobe.tasks import Prompts

torch.manual_seed(0)
prompts = Prompts(torch.randn(32, 31, 3), torch.randn(32, 31))
stream_cache(make_model(torch.float32, n_points=31), prompts, Path(sys.argv[1]),
             CacheConfig(loops=tuple(range(400)), names=("resid_post", "pattern"), positions=tuple(range(54, 62))))
"""


def test_a_killed_run_leaves_the_loops_that_it_wrote(tmp_path):
    path = tmp_path / "cache.nc"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen([sys.executable, "-c", KILLED, path], env=env)
    deadline = time.time() + 120
    while time.time() < deadline and run.poll() is None:
        if path.exists():
            with open_cache(path) as data:
                if data.sizes["loop"] >= 5:
                    break
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "it was to be killed before its end"
    data = open_cache(path)
    count = data.sizes["loop"]
    assert 5 <= count < 400
    assert data.attrs["incomplete"] == f"{count} of 400 loops: the run was stopped"
    torch.manual_seed(0)
    xs, ys = torch.randn(32, 31, 3), torch.randn(32, 31)
    _, cache = make_model(torch.float32, n_points=31).run_with_cache(
        xs, ys, count, names=["resid_post", "pattern"], positions=range(54, 62)
    )
    for name, values in cache.to_xarray().items():
        assert (data[name].values == values.values).all(), name


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"names": ("nope",)}, "no hook point"),
        ({"layers": (2,)}, "layer 2 must be below 2"),
        ({"positions": (12,)}, "position 12 must be below 12"),
    ],
)
def test_what_the_model_does_not_have_is_named(choice, message, model, prompts, tmp_path):
    with pytest.raises(LoopprobeError, match=message):
        stream_cache(model, prompts, tmp_path / "a.nc", CacheConfig(loops=(0,), **choice))
    assert not any(tmp_path.iterdir())


def test_files_that_are_there_or_not_are_named(model, prompts, tmp_path):
    with pytest.raises(LoopprobeError, match="at least one"):
        CacheConfig(loops=())
    with pytest.raises(LoopprobeError, match="no cache"):
        open_cache(tmp_path / "a.nc")
    stream_cache(model, prompts, tmp_path / "a.nc", CacheConfig(loops=(0,), names=("z",)))
    with pytest.raises(LoopprobeError, match="exists"):
        stream_cache(model, prompts, tmp_path / "a.nc", CacheConfig(loops=(0,), names=("z",)))
    (tmp_path / "b.nc").write_text("no netCDF")
    with pytest.raises(LoopprobeError, match="no netCDF"):
        open_cache(tmp_path / "b.nc")


@pytest.mark.parametrize("names", [None, ("prelude0_resid_post", "z"), ("prelude0_pattern", "coda0_resid_post")])
def test_what_is_computed_once_is_written_once(names, prompts, tmp_path):
    model = make_model(n_prelude_layers=1, n_coda_layers=1)
    stream_cache(model, prompts, tmp_path / "cache.nc", CacheConfig(loops=(0, 3), names=names))
    _, cache = model.run_with_cache(*prompts, 4, names=names, loops=(0, 3))
    data = open_cache(tmp_path / "cache.nc")
    expected = cache.to_xarray()
    assert set(data.data_vars) == set(expected.data_vars)
    for name, values in expected.items():  # a prelude without hooks rounds in another way
        assert data[name].dims == values.dims
        np.testing.assert_allclose(data[name], values, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("loops", [[1], [-2], [0, 5]])
def test_edits_act_at_the_loops_of_the_whole_run(loops, model, prompts, tmp_path):
    with edited(model, "mlp_out", zero, loops=loops), masked(model, "first", 2, loops=loops):
        stream_cache(model, prompts, tmp_path / "cache.nc", CacheConfig(loops=(0, 4, 5), names=("z",)))
        _, cache = model.run_with_cache(*prompts, 6, names="z")
    assert (open_cache(tmp_path / "cache.nc").z.values == cache.to_xarray().z.sel(loop=[0, 4, 5]).values).all()
    with pytest.raises(LoopprobeError, match="loop 6 was never reached"), edited(model, "mlp_out", zero, loops=[6]):
        stream_cache(model, prompts, tmp_path / "other.nc", CacheConfig(loops=(0, 5), names=("z",)))


@pytest.mark.parametrize(
    "choice",
    [
        {"names": ("embed",)},
        {"names": ("embed", "readout")},
        {"names": ("readout",), "positions": (11,)},
        {"names": ("z", "pattern"), "positions": (-1, 0), "layers": (-1,)},
        {"names": ("ln1_scale", "ln_final_scale", "result")},
        {"names": None, "loops": (3,)},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_choice_is_what_a_cache_in_memory_holds(choice, dtype, model, prompts, tmp_path):
    model.to(dtype)
    choice = {"loops": (0, 2), **choice}
    stream_cache(model, prompts, tmp_path / "cache.nc", CacheConfig(**choice))
    _, cache = model.run_with_cache(*prompts, 4, **choice)
    expected = cache.to_xarray()
    data = open_cache(tmp_path / "cache.nc")
    assert set(data.data_vars) == set(expected.data_vars)
    for name, values in expected.items():
        assert data[name].dims == values.dims
        assert (data[name].values == values.values).all(), name
        for axis in values.dims:
            if axis in expected.coords:
                assert list(data[axis].values) == list(expected[axis].values), (name, axis)
