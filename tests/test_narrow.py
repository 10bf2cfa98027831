"""Figures in a narrow window, in a browser: everything can be read, and a wider window takes it back."""

import re

import pytest
from browser import browsing
from conftest import TINY_CFG, TOKEN_CFG, make_model, make_token_model

from loopprobe.probes.session import probe
from loopprobe.show.figures.pages import write_figures
from loopprobe.show.present import figures
from loopprobe.store.checkpoint import Checkpoint

pytestmark = pytest.mark.browser

# Texts that hide one another or are cut, and a page that is wider than its window. Slanted texts may touch.
FAULTS = """() => {
  const found = [], texts = [];
  for (const text of document.querySelectorAll(".js-plotly-plot svg.main-svg text")) {
    const {left, top, right, bottom, width} = text.getBoundingClientRect();
    if (!text.textContent.trim() || width < 1 || getComputedStyle(text).visibility === "hidden") continue;
    if (text.closest("[style*='display: none']")) continue;
    const plot = text.closest(".js-plotly-plot");
    texts.push({words: text.textContent.slice(0, 60), left, top, right, bottom,
                scrolled: plot.layout.width && plot.parentElement.scrollWidth > plot.parentElement.clientWidth,
                slanted: /rotate\\((?!0)/.test(text.getAttribute("transform") ?? "")});
  }
  for (const [i, one] of texts.entries()) {
    if (!one.scrolled && (one.left < -2 || one.right > innerWidth + 2)) found.push(["cut", one.words]);
    for (const other of texts.slice(i + 1)) {
      if (one.slanted && other.slanted) continue;
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
  const domains = Object.keys(layout).filter((key) => /^[xy]axis/.test(key)).map((key) => [key, layout[key].domain]);
  const texts = layout.annotations?.map((note) => [note.text, note.x, note.y]) ?? [];
  const bar = layout.coloraxis?.colorbar?.orientation ?? "v";
  return [domains, texts, layout.title.text, plot._fullLayout.height, bar, plot.data.length];
}"""


@pytest.fixture
def pages(request, tmp_path):
    name, options, *others = request.param
    regression, tokens = "tokens" not in others, "tokens" in others
    checkpoint = Checkpoint(TINY_CFG, make_model(), name="tiny") if regression else Checkpoint(
        TOKEN_CFG, make_token_model(), name="tiny-add"
    )  # fmt: skip
    assert tokens != regression
    drawn = figures(probe(name, checkpoint, prompts=8, **options))
    write_figures(drawn, tmp_path)
    return [tmp_path / f"{stem}.html" for stem in drawn]


SHOWN = [
    ("mask", {"mode": "first", "n": [0, 1, 2]}), ("converge", {"loops": 8}), ("attention", {}), ("decode", {}),
    ("ablate", {}), ("weights", {}), ("recover", {}), ("paths", {}), ("align", {}), ("lens", {}), ("attribute", {}),
    ("lens", {}, "tokens"), ("extrapolate", {}, "tokens"), ("exit", {}, "tokens"), ("ablate", {}, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize("pages", SHOWN, indirect=True, ids=lambda shown: "-".join([shown[0], *shown[2:]]))
def test_everything_can_be_read_at_500_pixels(pages):
    for path in pages:
        with browsing(path.as_uri(), 500, ready=".main-svg .gtitle") as (page, heard, _):
            page.wait_for_timeout(300)
            assert page.evaluate(FAULTS) == [], path.stem
            assert [line for line in heard if not re.search("Canvas2D|WebGL", line)] == []  # said by the browser of 3D


@pytest.mark.parametrize("pages", [SHOWN[0], SHOWN[2], SHOWN[4]], indirect=True, ids=lambda shown: shown[0])
def test_panels_stand_below_one_another_until_the_window_is_wide_again(pages):
    for path in pages:
        with browsing(path.as_uri(), 1280) as (page, _, _):
            before = page.evaluate(LOOK)
            page.set_viewport_size({"width": 500, "height": 900})
            page.wait_for_function("() => document.querySelector('.js-plotly-plot').layout.xaxis.domain[1] === 1")
            narrow = page.evaluate(LOOK)
            assert all(domain == [0, 1] for name, domain in narrow[0] if name.startswith("x"))
            tops = [domain[1] for name, domain in narrow[0] if name.startswith("y")]
            assert len(set(tops)) == len(tops)
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
