"""Measures of one's own: they are what they say, in every probe that takes one, and in figures and tables."""

import numpy as np
import pytest
import torch

from loopprobe import figures, probe
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, replace
from loopprobe.model.masks import masked
from loopprobe.probes import patch
from loopprobe.probes.dataset import asked, read_stamp
from loopprobe.probes.measures import find_measure
from loopprobe.probes.questions import configured
from loopprobe.show.present import findings, table

FILE = """
import torch

def at_third(outputs, prompts):
    return (outputs[:, 2] - prompts.ys[:, 2].to(outputs)).abs()

at_third.unit = "of y at the third point"
number = 3
"""


def answers(checkpoint, prompts, n_loops=3):
    with torch.no_grad():
        return checkpoint.model(*prompts.inputs, n_loops=n_loops, read_at=prompts.read_at)[-1]


def test_measures_of_logits_are_those_of_torch(token_checkpoint):
    prompts = token_checkpoint.held_out(6)
    logits = answers(token_checkpoint, prompts)
    at_query, right = logits[:, -1], prompts.answers[:, -1]
    own = at_query[torch.arange(6), right]
    others = at_query.clone()
    others[torch.arange(6), right] = -torch.inf
    expected = {
        "probability": at_query.softmax(-1)[torch.arange(6), right],
        "margin": own - others.amax(-1),
        "logit_difference": own - (at_query.sum(-1) - own) / (at_query.shape[-1] - 1),
        "error": -at_query.log_softmax(-1)[torch.arange(6), right],
        "error:-2": -logits[:, -2].log_softmax(-1)[torch.arange(6), prompts.answers[:, -2]],
    }
    for name, values in expected.items():
        torch.testing.assert_close(find_measure(name, prompts)(logits, prompts), values)
    assert find_measure("margin", prompts).words == "margin (logits)"


def test_a_measure_of_a_file_is_found_and_recorded(checkpoint, tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    batch = checkpoint.held_out(8)
    data = probe("ablate", checkpoint, batch, measure="mine.py:at_third", loops=2, agreement=False)
    expected = (answers(checkpoint, batch, 2)[:, 2] - batch.ys[:, 2]).abs()
    np.testing.assert_allclose(data.clean, expected, rtol=1e-5)
    assert data.attrs["measure"] == "at_third"
    assert str(tmp_path / "mine.py") in data.attrs["measure_source"]
    assert "SHA-256" in data.attrs["measure_source"]
    assert data.effect.attrs["units"] == "of y at the third point"
    assert "at_third (of y at the third point)" in figures([data])["ablate"].layout.title.text
    assert "of y at the third point" in table(data).caption
    for place, message in (
        ("mine.py:number", "is a int: name a function"), ("mine.py:at_thrid", "did you mean at_third"),
        ("other.py:f", "there is no file other.py for measure f"), ("error:6", "names no answer: there are 6"),
        ("margin", "of tokens alone"), ("nothing", "choose from error, answer, error:K"),
    ):  # fmt: skip
        with pytest.raises(LoopprobeError, match=message) as error:
            probe("ablate", checkpoint, batch, measure=place)
        assert "\n" not in str(error.value)


def test_a_patch_is_measured_at_tokens_before_it_too(checkpoint):
    """What is measured reads all answers, and those before the patch are those of the corrupted run."""
    batch, model = checkpoint.held_out(6), checkpoint.model

    def sizes(outputs, prompts):
        return (outputs * torch.arange(1, 7)).sum(-1)

    data = patch.run(checkpoint, batch, patch.PatchConfig(sites=("z",), loops=3), measure=sizes)
    other = patch.corrupted_prompts(checkpoint, batch, patch.PatchConfig(corruption="weights"))
    _, clean = model.run_with_cache(*batch, n_loops=3, names="z")
    with torch.no_grad():
        before = sizes(model(*other, 3)[-1], batch)
        for token in (3, 6, 10):
            with edited(model, "z", replace(clean), loops=1, positions=token):
                moved = sizes(model(*other, 3)[-1], batch) - before
            np.testing.assert_allclose(data.z_moved.sel(loop=2, position=token), moved, atol=2e-4)
    np.testing.assert_allclose(data.corrupted, before, rtol=1e-5)
    assert "measured: sizes" in figures([data])["patch-z"].layout.title.text.replace("<br>", " ")


def test_a_mask_is_measured(checkpoint):
    batch = checkpoint.held_out(6)
    data = probe("mask", checkpoint, batch, n=(0, 2, 6), loops=3, measure="error:1")
    with torch.no_grad(), masked(checkpoint.model, "first", 2):
        errors = batch.errors(checkpoint.model(*batch, 3))
    np.testing.assert_allclose(data.error.sel(n=2), errors[..., 1], rtol=1e-5)
    assert "failures" not in data
    stamp = read_stamp(data)
    assert stamp.unit == "error at answer 1 (squared error / E(y²))"
    assert "fail" not in [str(column.header) for column in table(data).columns]
    assert stamp.query_unit in table(data).caption
    assert stamp.query_unit in str(figures([data])["mask"].to_dict())
    assert "error at answer 1" in findings([data])[0]
    plain = probe("mask", checkpoint, batch, n=(0, 2, 6), loops=3)
    assert "failures" in plain
    assert "measure" not in plain.attrs


def test_attribution_splits_linear_measures_and_refuses_others(checkpoint, token_checkpoint):
    batch = checkpoint.held_out(6)

    def shifted(outputs, prompts):
        return 2 * outputs[:, -1] - 1

    plain, twice = (probe("attribute", checkpoint, batch, loops=2, **more) for more in ({}, {"measure": shifted}))
    np.testing.assert_allclose(twice.contribution, 2 * plain.contribution, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(twice.offset, 2 * plain.offset - 1, rtol=1e-5)
    whole = twice.contribution.sum(("loop", "component")) + twice.initial + twice.offset
    np.testing.assert_allclose(whole, twice.prediction, rtol=1e-4, atol=1e-5)
    assert "shifted" in figures([twice])["attribute"].layout.title.text
    for measure in ("error", lambda outputs, prompts: outputs.sum(-1), lambda outputs, prompts: outputs[:, -1] ** 2):
        with pytest.raises(LoopprobeError, match="attribute splits linear functions"):
            probe("attribute", checkpoint, batch, measure=measure)
    tokens = token_checkpoint.held_out(4)
    own, named = (
        probe("attribute", token_checkpoint, tokens, **more) for more in ({}, {"measure": "logit_difference"})
    )
    np.testing.assert_allclose(own.contribution, named.contribution, rtol=1e-5)


def test_a_probe_that_takes_no_measure_says_so_in_one_line(checkpoint):
    with pytest.raises(LoopprobeError, match="unknown config key 'measure'") as error:
        probe("attention", checkpoint, 4, measure="error")
    assert "\n" not in str(error.value)


MEASURED = {
    "ablate": {"methods": ("zero",), "agreement": False}, "attribute": {}, "circuit": {"random": 1, "steps": 1},
    "edges": {"exact": 1, "steps": 1}, "mask": {"n": (1,)}, "patch": {"sites": ("z",), "corruption": "token"},
    "steer": {}, "features": {"steps": 3, "fit_prompts": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_an_answer_is_found_again_by_the_measure_that_was_asked_for(name, token_checkpoint):
    prompts = token_checkpoint.held_out(4)
    options = {"loops": 2, "measure": "logit_difference"} | MEASURED[name]
    data = probe(name, token_checkpoint, prompts, **options)
    assert data.attrs["config"] == asked(name, token_checkpoint, prompts, configured(name, options)[1])["config"]
    assert data.attrs["measure"] == "logit difference"
