"""Figures as files: whole or not at all, and such that one page can be sent by itself."""

import errno
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from conftest import TINY_CFG, make_model
from plotly.subplots import make_subplots

from loopprobe.cli.options import question_files
from loopprobe.errors import LoopprobeError
from loopprobe.probes import attention
from loopprobe.probes.dataset import write_dataset
from loopprobe.probes.loops import LoopsConfig
from loopprobe.show.figures import pages
from loopprobe.show.figures.attention import attention_figures
from loopprobe.show.figures.pages import write_figures, write_html
from loopprobe.show.figures.style import finish
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.study.saved import saved_questions
from loopprobe.study.shipped import study_folder

ROOT = Path(__file__).parents[1]


def bar(height):
    return go.Figure(go.Bar(x=[1], y=[height]))


def test_one_figure_holds_the_script_and_several_share_it(tmp_path):
    assert write_figures({"one": bar(1)}, tmp_path) == [tmp_path / "one.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["one.html"]
    assert "<script src" not in (tmp_path / "one.html").read_text()
    assert (tmp_path / "one.html").stat().st_size > 3_000_000
    write_figures({"two": bar(2), "three": bar(3)}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "plotly.min.js", "three.html", "two.html"]
    assert (tmp_path / "two.html").stat().st_size < 100_000
    assert re.findall(r'<script [^>]*src="([^"]+)"', (tmp_path / "two.html").read_text()) == ["plotly.min.js"]
    before = (tmp_path / "plotly.min.js").stat().st_mtime_ns
    write_figures({"two": bar(2), "three": bar(3)}, tmp_path)
    assert (tmp_path / "plotly.min.js").stat().st_mtime_ns == before
    assert write_figures({}, tmp_path) == []


def full_disk(path, content, *rest, **options):
    with path.open("w") as file:
        file.write(content[: len(content) // 2] if isinstance(content, str) else "")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", full_disk)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    for figures in ({"one": bar(1)}, {"one": bar(1), "two": bar(2)}):
        with pytest.raises(LoopprobeError, match=r"cannot write .*No space left on device"):
            write_figures(figures, tmp_path)
        assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_gives_one_line(tmp_path):
    with pytest.raises(LoopprobeError, match="cannot write"):
        write_html(bar(1), tmp_path / "gone" / "one.html")
    with pytest.raises(LoopprobeError, match="cannot write"):
        write_dataset(xr.Dataset({"a": ("x", [1.0])}), tmp_path / "gone" / "one.nc")


@pytest.mark.parametrize("loops", [2, 4, 9])
def test_the_slider_stands_still_at_the_loops_of_the_training(tmp_path, loops):
    one = Checkpoint(TINY_CFG, make_model(), name="tiny")
    data = attention.run(one, one.held_out(4).to(one.model.W_pos.dtype), LoopsConfig(loops=loops))
    figure = attention_figures(data)["attention"]
    (slider,) = figure.layout.sliders
    shown = min(4, loops)
    assert slider.steps[slider.active].label == str(shown) == figure.frames[slider.active].name
    for trace, framed in zip(figure.data, figure.frames[slider.active].data, strict=True):
        assert (trace.z == framed.z)[~(trace.z != trace.z)].all()
    write_html(figure, tmp_path / "attention.html", alone=False)
    page = (tmp_path / "attention.html").read_text()
    assert "Plotly.addFrames" in page
    assert "Plotly.animate(" not in page


def test_every_question_of_the_study_is_found():
    names = {path.name: path.read_bytes() for path in study_folder().glob("*.toml")}
    assert names == {path.name: path.read_bytes() for path in (ROOT / "probes").glob("*.toml")}
    assert list(saved_questions()) == list(saved_questions(ROOT / "probes"))


def test_questions_are_found_by_name_and_by_path():
    own = Path("mine.toml")
    own.write_text("")
    paths = question_files(["r4_last_n", "mine.toml", str(ROOT / "probes" / "r1_compare.toml")])
    assert list(paths) == ["r4_last_n", "mine", "r1_compare"]
    assert paths["r4_last_n"].read_bytes() == (ROOT / "probes" / "r4_last_n.toml").read_bytes()
    for wrong, words in [("r4_last", "r4_last_n"), ("r1_models", "r1_"), ("none.toml", "r1_compare")]:
        with pytest.raises(LoopprobeError, match=words):
            question_files([wrong])
    Path("other").mkdir()
    Path("other/mine.toml").write_text("")
    with pytest.raises(LoopprobeError, match="one name"):
        question_files(["mine.toml", "other/mine.toml"])


@pytest.mark.parametrize(
    ("named", "message"), [("/bin/false", "/bin/false, which BROWSER_PATH names"), (None, "needs a Chrome or Chromium")]
)
def test_what_draws_no_png_is_named_with_the_reason(named, message, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise RuntimeError("The browser closed.", "Install Chrome.")

    monkeypatch.setattr(go.Figure, "to_image", fails)
    monkeypatch.setattr(pages, "require_extra", lambda *_: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    if named:
        monkeypatch.setenv("BROWSER_PATH", named)
    with pytest.raises(LoopprobeError, match=message) as raised:
        pages._png(go.Figure())
    assert ("The browser closed)" in str(raised.value)) == bool(named)


def of_logs(*traces, **axis):
    return finish(go.Figure(list(traces)).update_yaxes(type="log", **axis), "a figure").layout.yaxis


def inside(axis, low, high):
    return [text for tick, text in zip(axis.tickvals, axis.ticktext, strict=True) if low < tick < high]


def test_a_logarithmic_axis_has_ticks_that_can_be_told_apart():
    short, long = go.Scatter(y=[0.013, np.nan, 0.04]), go.Scatter(y=[1e-4, np.nan, 2.0])
    assert inside(of_logs(short), 0.013, 0.04) == ["0.02", "0.03"]
    for axis in (of_logs(long), of_logs(short, long), of_logs(go.Scatter(y=[0.0, -1.0])), of_logs()):
        assert (axis.dtick, axis.exponentformat, axis.tickvals) == (1, "power", None)
    assert of_logs(go.Scatter(y=[1e-30, 1.0])).dtick == 3
    barred = go.Scatter(y=[0.02, 0.03], error_y={"array": [0.01, 70.0], "arrayminus": [0.01, 0.01]})
    assert of_logs(barred).dtick == 1
    assert of_logs(go.Scatter(y=[0.874, 1.51])).tickvals is None, "plotly's own are better than 1 alone"
    two = of_logs(go.Scatter(y=[0.0013, 0.06]))
    assert inside(two, 0.0013, 0.06) == ["0.002", "0.003", "0.005", "0.01", "0.02", "0.03", "0.05"]
    own = of_logs(short, tickvals=[0.02], ticktext=["here"])
    assert own.ticktext == ("here",)
    assert of_logs(short, tickformat=".1%").tickvals is None


def test_axes_that_match_have_the_ticks_of_all_that_is_drawn():
    figure = make_subplots(1, 2, shared_yaxes=True)
    figure.add_scatter(y=[0.013, 0.04], row=1, col=1).add_scatter(y=[1e-4, 2.0], row=1, col=2).update_yaxes(type="log")
    assert [axis.dtick for axis in finish(figure, "two").select_yaxes()] == [1, 1]
