"""What a session prints: models, caches and prompts in a line or two, never their numbers."""

import re
from xml.etree import ElementTree

import pytest
import torch

from loopprobe import Prompts, load, load_checkpoint


def test_prompts_are_a_line():
    prompts = load_checkpoint("lr-b5-T5").held_out(4, seed=3)
    assert repr(prompts) == (
        "Prompts(4 prompts of linear regression, 31 points of 10 dimensions, held out with seed 3)"
    )
    assert repr(Prompts(torch.zeros(2, 5, 3), torch.zeros(2, 5))) == (
        "Prompts(2 prompts of no task that is known, 5 points of 3 dimensions)"
    )
    words = load_checkpoint("add-L1").held_out(7, length=3)
    assert repr(words) == "TokenPrompts(7 prompts of addition, 5 tokens, held out with seed 0)"


def test_a_cache_tells_its_loops_names_and_size():
    model = load_checkpoint("lr-b5-T5").model
    _, cache = model.run_with_cache(torch.zeros(2, 31, 10), torch.zeros(2, 31), names=["z", "pattern"])
    assert repr(cache).startswith("LoopCache(loops 0–4 of 5, 2 names, ")


def diagram(model):
    """The words of the picture of a loop, which is well-formed."""
    page = model._repr_html_()
    picture = ElementTree.fromstring(re.search(r"<svg.*?</svg>", page)[0])
    return page, [one.text for one in picture.iter("text") if one.text]


def test_a_model_draws_its_loop_in_a_notebook():
    page, words = diagram(load_checkpoint("lr-L2-b10-T10").model)
    assert words == ["inputs", "embed", "e", "z + e", "2 layers", "z", "read out", "× 10, z starts as zeros", "answers"]
    assert "b = 10 loops of 2 layers, 4 heads, a state of 64; 104,833 weights, float32 on cpu" in page
    assert "<code>loops.{t}.blocks.{l}.attn.hook_pattern</code></td><td>head, query, key</td><td>4 × 62 × 62" in page


@pytest.mark.slow
def test_a_wrapped_model_draws_its_loop_without_a_run(monkeypatch):
    model = load("hf:raven-docs", trust_remote_code=True)
    monkeypatch.setattr(type(model), "forward", None)
    _, words = diagram(model)
    assert {"f(z, e)", "2 layers", "coda, read out", "× 6, z starts as random state, seed 0"} <= set(words)


def test_a_cache_is_a_table_in_a_notebook():
    model = load_checkpoint("lr-b5-T5").model
    _, cache = model.run_with_cache(torch.zeros(2, 31, 10), torch.zeros(2, 31), names=["z", "pattern", "embed"])
    page = cache._repr_html_()
    rows = [re.findall("<td>(.*?)</td>", row) for row in page.split("<tr>")[2:]]
    z, pattern = 5 * 2 * 62 * 64 * 4, 5 * 2 * 4 * 62 * 62 * 4  # bytes
    assert sorted(rows) == sorted([
        ["embed", "hook_embed", "–", "example, position, d_model", "2 × 62 × 64", f"{z / 5e3:,.1f} kB"],
        ["pattern, layer 0", "blocks.0.attn.hook_pattern", "0–4", "example, head, query, key", "2 × 4 × 62 × 62",
         f"{pattern / 1e6:.1f} MB"],
        ["z", "hook_z", "0–4", "example, position, d_model", "2 × 62 × 64", f"{z / 1e6:.1f} MB"],
    ])  # fmt: skip
    one = cache.loop(3)._repr_html_()
    assert "activations of one loop" in one
    assert one.count("<tr>") == 3
    _, kept = model.run_with_cache(torch.zeros(2, 31, 10), torch.zeros(2, 31), names="z", detach=False)
    assert "0–4</td><td>example, position, d_model</td><td>2 × 62 × 64" in kept._repr_html_()
