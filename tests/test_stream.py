import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_model

from loopprobe.errors import LoopprobeError
from loopprobe.stream import open_cache, stream_cache


def test_a_file_holds_what_a_cache_in_memory_holds(model, prompts, tmp_path):
    choice = {"loops": [0, 2, 5], "positions": [0, -1], "names": ["resid_post", "pattern", "z", "readout", "embed"]}
    stream_cache(model, prompts, tmp_path / "cache.nc", attrs={"made": "here"}, **choice)
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, 6, **choice)
    data = open_cache(tmp_path / "cache.nc")
    assert data.attrs == {"made": "here"}
    for name, values in cache.to_xarray().items():
        assert data[name].dims == values.dims
        assert (data[name].values == values.values).all(), name
    assert (
        data.embed.values
        == model.run_with_cache(*prompts, 1, names="embed", positions=[0, -1])[1]["hook_embed"].numpy()
    ).all()
    for axis in ("loop", "layer", "position", "query", "key", "head", "point"):
        assert axis in data.coords
    assert model.list_hooks() == {}


KILLED = """
import sys
from pathlib import Path
import torch
from conftest import make_model
from loopprobe.stream import stream_cache
from loopprobe.tasks import Prompts

torch.manual_seed(0)
prompts = Prompts(torch.randn(32, 31, 3), torch.randn(32, 31))
stream_cache(make_model(torch.float32, n_points=31), prompts, Path(sys.argv[1]), loops=range(400),
             names=["resid_post", "pattern"], positions=slice(-8, None))
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
        xs, ys, count, names=["resid_post", "pattern"], positions=slice(-8, None)
    )
    for name, values in cache.to_xarray().items():
        assert (data[name].values == values.values).all(), name


def test_mistakes_are_named(model, prompts, tmp_path):
    with pytest.raises(LoopprobeError, match="at least one"):
        stream_cache(model, prompts, tmp_path / "a.nc", loops=[])
    with pytest.raises(LoopprobeError, match="no hook point"):
        stream_cache(model, prompts, tmp_path / "a.nc", loops=[0], names="nope")
    assert not (tmp_path / "a.nc").exists()
    with pytest.raises(LoopprobeError, match="no cache"):
        open_cache(tmp_path / "a.nc")
    stream_cache(model, prompts, tmp_path / "a.nc", loops=[0], names="z")
    with pytest.raises(LoopprobeError, match="exists"):
        stream_cache(model, prompts, tmp_path / "a.nc", loops=[0], names="z")
