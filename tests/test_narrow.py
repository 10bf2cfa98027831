"""Figures in a narrow window, in a browser: everything can be read, and a wider window takes it back."""

import re

import pytest
import torch
from browser import browsing
from conftest import TINY_CFG, TOKEN_CFG, make_model, make_token_model

from loopprobe.probes.session import probe
from loopprobe.show.figures.pages import write_figures
from loopprobe.show.present import figures
from loopprobe.store.checkpoint import Checkpoint

pytestmark = pytest.mark.browser

# Texts that hide one another or are cut, and a page that is wider than its window. Slanted texts may touch, and ticks
# in a corner.
FAULTS = """() => {
  const found = [], texts = [];
  for (const text of document.querySelectorAll(".js-plotly-plot svg.main-svg text")) {
    if (text.closest(".textpoint")) continue;  // beside marks, which may be near one another
    const {left, top, right, bottom, width} = text.getBoundingClientRect();
    if (!text.textContent.trim() || width < 1 || getComputedStyle(text).visibility === "hidden") continue;
    if (text.closest("[style*='display: none']")) continue;
    const plot = text.closest(".js-plotly-plot");
    texts.push({words: text.textContent.slice(0, 60), left, top, right, bottom,
                tick: text.closest("g[class$='tick']")?.classList[0][0],
                scrolled: plot.layout.width && plot.parentElement.scrollWidth > plot.parentElement.clientWidth,
                slanted: /rotate\\((?!0)/.test(text.getAttribute("transform") ?? "")});
  }
  for (const [i, one] of texts.entries()) {
    if (!one.scrolled && (one.left < -2 || one.right > innerWidth + 2)) found.push(["cut", one.words]);
    for (const other of texts.slice(i + 1)) {
      if (one.slanted && other.slanted || one.tick && other.tick && one.tick !== other.tick) continue;
      const across = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const down = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (across > 3 && down > 5) found.push(["over", one.words, other.words]);
    }
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push(["wide", document.documentElement.scrollWidth]);
  return found;
}"""
LOOK = """() => {
  const plot = document.querySelector(".js-plotly-plot"), {layout} = plot;
  const used = new Set(plot.data.flatMap((trace) => [trace.xaxis ?? "x", trace.yaxis ?? "y"]));
  const keys = Object.keys(layout).filter((key) => /^[xy]axis/.test(key) && used.has(key.replace("axis", "")));
  const domains = keys.map((key) => [key, layout[key].domain]);
  const texts = layout.annotations?.map((note) => [note.text, note.x, note.y]) ?? [];
  const bar = layout.coloraxis?.colorbar?.orientation ?? "v";
  return [domains, texts, layout.title.text, plot._fullLayout.height, bar, plot.data.length];
}"""


@pytest.fixture
def pages(request, tmp_path):
    name, options, *others = request.param
    tokens = Checkpoint(TOKEN_CFG, make_token_model(), name="tiny-add")
    checkpoint = tokens if "tokens" in others else Checkpoint(TINY_CFG, make_model(torch.float32), name="tiny")
    drawn = figures(probe(name, checkpoint, prompts=8, **options))
    write_figures(drawn, tmp_path)
    return {tmp_path / f"{stem}.html": figure for stem, figure in drawn.items()}


SHOWN = [
    ("mask", {"mode": "first", "n": [0, 1, 2]}), ("converge", {"loops": 130}), ("attention", {}), ("decode", {}),
    ("ablate", {}), ("weights", {}), ("recover", {}), ("paths", {}), ("align", {}), ("lens", {}), ("attribute", {}),
    ("lens", {}, "tokens"), ("extrapolate", {}, "tokens"), ("exit", {}, "tokens"), ("ablate", {}, "tokens"),
    ("failures", {"loops": 128}), ("features", {"steps": 5, "fit_prompts": 8}), ("patch", {}, "tokens"), ("shift", {}),
    ("converge", {"loops": 130}, "tokens"), ("steer", {}), ("circuit", {}), ("edges", {}), ("compare", {}),
    ("fixed_points", {"far": 128}),
]  # fmt: skip


TITLE = ".main-svg .gtitle"
LABELS = """() => {
  const {layout} = document.querySelector(".js-plotly-plot"), found = {};
  const plain = (text) => (text ?? "").replace(/<br>/g, " ");
  for (const key of Object.keys(layout).filter((key) => /^yaxis/.test(key))) {
    const id = key.replace("axis", ""), {domain, title, ticktext} = layout[key], top = domain?.[1] ?? 1;
    const heads = layout.annotations?.filter((note) => note.yref === "paper" && note.x === 0.5);
    const head = heads?.find((note) => Math.abs(note.y - top) < 1e-6);
    found[id] = [plain(head?.text), plain(title?.text), Array.from(ticktext ?? []).join()];
  }
  return found;
}"""


def as_drawn(figure):
    """By axis: the title of the panel, or the next above it; the axis; and whether another axis tells what it shows."""
    said = {}
    drawn = {trace.yaxis or "y" for trace in figure.data if hasattr(trace, "yaxis")}
    notes = [note for note in figure.layout.annotations if note.yref == "paper"]
    for axis in figure.select_yaxes():
        name = axis.plotly_name.replace("axis", "")
        if name not in drawn:
            continue
        across = figure.layout[f"xaxis{(axis.anchor or 'x')[1:]}"].domain or (0, 1)
        top = (axis.domain or (0, 1))[1]
        over = [n for n in notes if abs(n.x - sum(across) / 2) < 1e-6 and n.y > top - 1e-6 and n.text]
        head = min(over, key=lambda note: note.y).text if over else ""
        said[name] = (head, axis, axis.showticklabels is False or axis.matches is not None)
    return said


def plain(text):
    return (text or "").replace("<br>", " ")


@pytest.mark.parametrize("pages", SHOWN, indirect=True, ids=lambda shown: "-".join([shown[0], *shown[2:]]))
def test_everything_can_be_read_at_500_pixels(pages):
    with browsing(next(iter(pages)).as_uri(), 500, ready=TITLE) as (page, heard, _):
        for path, figure in pages.items():
            page.goto(path.as_uri())
            page.wait_for_selector(TITLE, state="attached")
            page.wait_for_function("() => document.querySelector('.js-plotly-plot').layout.margin.l === 56")
            page.wait_for_timeout(300)
            assert page.evaluate(FAULTS) == [], path.stem
            labels = page.evaluate(LABELS)
            for name, (head, axis, told) in as_drawn(figure).items():
                assert labels[name][0] == plain(head), (path.stem, name)
                if axis.title.text or not told:
                    assert labels[name][1] == plain(axis.title.text), (path.stem, name)
                if not told and axis.ticktext:
                    assert labels[name][2].replace("<br>", " ") == ",".join(axis.ticktext).replace("<br>", " ")
    assert [line for line in heard if not re.search("Canvas2D|WebGL", line)] == []  # said by the browser of 3D


@pytest.mark.parametrize("pages", [SHOWN[0], SHOWN[2], SHOWN[4]], indirect=True, ids=lambda shown: shown[0])
def test_panels_stand_below_one_another_until_the_window_is_wide_again(pages):
    for path in pages:
        with browsing(path.as_uri(), 1280) as (page, _, _):
            before = page.evaluate(LOOK)
            page.set_viewport_size({"width": 500, "height": 900})
            page.wait_for_function("() => document.querySelector('.js-plotly-plot').layout.margin.l === 56")
            narrow = page.evaluate(LOOK)
            assert all(domain == [0, 1] for name, domain in narrow[0] if name.startswith("x"))
            tops = [domain[1] for name, domain in narrow[0] if name.startswith("y")]
            assert len(set(tops)) == len(tops)
            page.set_viewport_size({"width": 380, "height": 900})
            page.wait_for_timeout(600)
            faults = {fault[0] for fault in page.evaluate(FAULTS)}
            assert not faults & {"cut", "wide"}, "a narrower window is fitted again"
            page.set_viewport_size({"width": 1280, "height": 900})
            page.wait_for_function("look => JSON.stringify((" + LOOK + ")()) === look", arg=_json(page, before))
            assert page.evaluate(LOOK) == before


def _json(page, value):
    return page.evaluate("value => JSON.stringify(value)", value)


@pytest.mark.parametrize("pages", [SHOWN[2]], indirect=True, ids=["attention"])
def test_a_slider_still_moves_when_panels_are_stacked(pages):
    values = "() => Array.from(document.querySelector('.js-plotly-plot').calcdata[0][0].z, (row) => Array.from(row))"
    how = "{mode: 'immediate', frame: {duration: 0}}"
    show = f"name => Plotly.animate(document.querySelector('.js-plotly-plot'), [name], {how})"
    [path] = [path for path in pages if path.stem == "attention"]
    with browsing(path.as_uri(), 500) as (page, heard, _):
        first = (page.evaluate(show, "1"), page.evaluate(values))[1]
        last = (page.evaluate(show, str(TINY_CFG.model.n_loops)), page.evaluate(values))[1]
        assert first != last
        assert page.evaluate(FAULTS) == []
        assert heard == []
