"""The seam: a model and prompts that share nothing with regression go through every probe that does not need it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model
from other_model import OtherSubject, draw

import loopprobe
from loopprobe import figures, probe
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, replace
from loopprobe.model.masks import masked
from loopprobe.model.protocol import MEANS, LoopedModel
from loopprobe.probes.dataset import read_dataset, read_stamp, write_dataset
from loopprobe.probes.registry import PROBES
from loopprobe.show.present import table, tables_for
from loopprobe.tasks import PromptBatch, Prompts

PACKAGE = Path(loopprobe.__file__).parent
OPTIONS = {
    "ablate": {"methods": ("zero", "mean", "resample", "optimal"), "fit_steps": 3},
    "edges": {"loops": 2, "exact": 3, "steps": 1},
    "circuit": {"loops": 2, "steps": 1, "random": 1, "per_decade": 2, "halves": True},
    "mask": {"n": (0, 1, 2, 4), "loops": 6},
    "converge": {"loops": 20, "states": 2, "far": 200},
    "lens": {"train_prompts": 200},
    "patch": {"sites": ("z", "attn_z", "mlp_out")},
    "attention": {},
    "paths": {"loops": 140},
    "fixed_points": {"far": 200, "random_starts": 1, "lyapunov_steps": 5, "max_iterations": 20, "eigenvalues": 2},
    "recover": {"loops": 5},
    "steer": {"loops": 5, "fit_prompts": 20, "measure": "error"},
    "features": {"loops": 5, "k": 2, "fit_prompts": 20, "steps": 20, "top": 2},
    "failures": {"loops": 130},
    "exit": {"loops": 12},
    "explore": {"loops": 5, "prompt": 1, "reset": (1, 2), "hide": (4,), "heads": ((0, 1), (1, 2))},
}


@pytest.fixture(scope="module")
def subject():
    return OtherSubject()


class Answers(dict):
    """Every probe's dataset, made when it is asked for: another worker of pytest may ask for others."""

    def __init__(self, subject, prompts):
        super().__init__()
        self.subject, self.prompts = subject, prompts

    def __missing__(self, name):
        given = {"corrupted": draw(6, seed=1)} if name in ("patch", "ablate", "edges", "circuit") else {}
        self[name] = probe(name, self.subject, self.prompts, **OPTIONS[name], **given)
        return self[name]


@pytest.fixture(scope="module")
def answers(subject):
    """The prompts, and every probe's dataset."""
    prompts = draw(6)
    return prompts, Answers(subject, prompts)


def test_both_models_and_prompts_fill_the_protocols(subject):
    assert isinstance(subject.model, LoopedModel)
    assert isinstance(make_model(), LoopedModel)
    assert isinstance(draw(2), PromptBatch)
    assert isinstance(Prompts(torch.zeros(2, 3, 4), torch.zeros(2, 3)), PromptBatch)
    assert make_model().supports == MEANS.keys() - {"generate", "gate"}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_dataset_is_shown_in_its_own_units_and_survives_a_file(name, answers, tmp_path):
    data = answers[1][name]
    write_dataset(data, tmp_path / "data.nc")
    data = read_dataset(tmp_path / "data.nc")
    stamp = read_stamp(data)
    assert (stamp.probe, stamp.unit, stamp.checkpoint) == (name, "absolute error", "runs/both-ways")
    made = figures([data])
    assert made
    assert table(data).row_count
    assert tables_for([data])
    text = str([figure.to_dict() for figure in made.values()]) + str([t.caption for t in tables_for([data])])
    assert "E(y²)" not in text
    if name in ("mask", "converge", "lens", "exit", "explore", "fixed_points", "ablate"):
        assert "absolute error" in text


def test_masks_are_those_of_runs_that_are_masked(subject, answers):
    prompts, made = answers
    data = made["mask"]
    model = subject.model
    with torch.no_grad():
        for n in (0, 1, 2, 4):
            with masked(model, "first", n):
                error = prompts.errors(model(prompts.tokens, n_loops=6))
            np.testing.assert_allclose(data.error.sel(n=n), error[..., -1], rtol=1e-5)
            np.testing.assert_allclose(data.error_by_point.sel(n=n), error.mean(1), rtol=1e-5)
    np.testing.assert_array_equal(data.error.sel(n=4), data.clean_error)  # all points are kept
    assert data.attrs["full"] == 4
    assert "the first n of 4 points, 3n of 12 tokens" in data.attrs["description"]


def test_errors_are_those_of_the_prompts(subject, answers):
    prompts, made = answers
    with torch.no_grad():
        error = prompts.errors(subject.model(prompts.tokens, n_loops=20))
    np.testing.assert_allclose(made["converge"].error, error[..., -1], rtol=1e-6)
    np.testing.assert_allclose(made["exit"].budget_mean, error[:12, :, -1].mean(1), rtol=1e-6)
    assert made["converge"].optimum.isnull().all()
    assert made["converge"].spectral_radius.isnull().all(), "a token that sees later ones has no block of its own"


def test_no_panel_is_empty_without_a_word(answers):
    drawn = figures([answers[1]["converge"]])
    notes = [note.text.replace("<br>", " ") for note in drawn["converge-limits"].layout.annotations]
    assert answers[1]["converge"].spectral_radius.attrs["missing"] in notes
    [title] = [note.text for note in drawn["converge"].layout.annotations]
    assert title == "trained elsewhere"


def test_the_lens_of_the_last_site_is_the_answer(answers):
    data = answers[1]["lens"].sel(lens="final norm").isel(site=-1, loop=-1)
    np.testing.assert_allclose(data.to_final, 0, atol=1e-6)
    assert answers[1]["lens"].to_optimum.isnull().all()


def test_a_patch_is_the_edit_by_hand_at_early_and_late_tokens(subject, answers):
    prompts, made = answers
    data, model, other = made["patch"], subject.model, draw(6, seed=1)
    _, donor = model.run_with_cache(prompts.tokens, names=["z", "attn_z"])
    with torch.no_grad():
        clean = prompts.answer(model(prompts.tokens)[-1])
        corrupted = prompts.answer(model(other.tokens)[-1])
        for token in (0, 5, 11):
            with edited(model, "z", replace(donor), loops=1, positions=[token]):
                patched = prompts.answer(model(other.tokens)[-1])
            moved = data.z_moved.sel(loop=2, position=token)
            np.testing.assert_allclose(moved, patched - corrupted, atol=1e-5)
            with edited(model, "attn_z", replace(donor), loops=2, layers=1, heads=[2], positions=[token]):
                patched = prompts.answer(model(other.tokens)[-1])
            moved = data.attn_z_moved.sel(loop=3, layer=1, head=2, position=token)
            np.testing.assert_allclose(moved, patched - corrupted, atol=1e-5)
    np.testing.assert_allclose(data.clean, clean, rtol=1e-6)
    assert data.sizes["position"] == 12, "every token acts on the answer, those behind the query too"


def test_attention_goes_to_later_tokens_too(subject, answers):
    prompts, made = answers
    data = made["attention"]
    _, cache = subject.model.run_with_cache(prompts.tokens, names="pattern")
    pattern = torch.stack([cache.stack("pattern", layer) for layer in range(2)], 1)
    np.testing.assert_allclose(data.pattern, pattern.mean(2), atol=1e-6)
    assert data.target.values.tolist() == ["itself", "first of three", "first token"]
    np.testing.assert_allclose(data.mass.sel(target="itself"), pattern[..., 11, 11].mean(2), atol=1e-6)
    np.testing.assert_allclose(data.mass.sel(target="first of three"), pattern[..., 11, ::3].sum(-1).mean(2), atol=1e-6)
    np.testing.assert_allclose(data.uniform, [1 / 12, 4 / 12, 1 / 12], rtol=1e-6)
    assert (data.mixing_score <= 1).all()


def test_the_long_run_is_that_of_the_map(subject, answers):
    prompts, made = answers
    model = subject.model
    with torch.no_grad():
        e = model.embed(prompts.tokens)
        z = model.initial_state(e)
        for _ in range(140):
            z = model.step(z, e)
    found = made["fixed_points"]
    assert (found.eigenvalue_position == -1).all()
    from_the_end = found.isel(start=0)
    assert (from_the_end.status == "FOUND").any()
    assert (from_the_end.residual[from_the_end.status.values == "FOUND"] < 1e-8).all()
    path = made["paths"].path
    assert path.sizes["followed"] == 6
    pushed = made["recover"]
    assert pushed.position.values[-1] == -1
    error = prompts.errors(model(prompts.tokens)[-1].detach())[:, -1].mean()
    np.testing.assert_allclose(pushed.clean_mean[0], error, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(PROBES.keys() - OPTIONS.keys() - {"curves"}))
def test_what_needs_more_is_refused_in_one_line(name, subject):
    with pytest.raises(LoopprobeError) as error:
        probe(name, subject, draw(2))
    assert str(error.value).count("\n") == 0
    lacks = (
        "(weights of a LoopedTransformer|heads that are their projections alone), which both-ways has not|asks about "
        "(labelled points|lengths of a token)"
    )
    assert re.search(lacks, str(error.value))


def test_every_declaration_names_functions_that_are_there():
    from loopprobe.show import present

    for one in (declared.shown for declared in PROBES.values()):
        for place in (one.figures, one.compare_figure, one.further_figures):
            assert not place or callable(present._drawing(place))
        for place in (one.table, one.compare_table, one.further_table):
            assert not place or callable(present._tabling(place))
        assert one.table or one.compare_table
    assert list(PROBES) == [one.name for one in PROBES.values()]


def test_only_regression_knows_what_its_prompts_are():
    """No unit of regression, no query of 2n - 2 and no every-other-token outside its own modules."""
    formulas = re.compile(r"E\(y²\)|E\(y\^2\)|2 \* n_points|n_points \* 2|2 \* n\b.*- 2|:, ::2|\[1\] - 2\b")
    own = {PACKAGE / "config", PACKAGE / "tasks", PACKAGE / "reference"}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{i}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if not own & set(path.parents)
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if formulas.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_tables_import_no_plotly():
    import subprocess
    import sys

    code = "import sys, loopprobe.show.tables, loopprobe.show.present; print('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
