"""Several datasets in one figure and table, and their paired differences, against numpy on the prompts' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import TINY_CFG, TOKEN_CFG, make_model, make_token_model

import loopprobe
from loopprobe import LoopprobeError, difference, figure, probe, table
from loopprobe.probes.dataset import read_dataset, write_dataset
from loopprobe.probes.labels import labels_of
from loopprobe.show.group import grouped
from loopprobe.show.present import figures, findings, tables_for
from loopprobe.show.tables.plain import lines_of
from loopprobe.store.checkpoint import Checkpoint, save
from loopprobe.support.statistics import bootstrap_ratio, median_interval, share_difference_interval
from loopprobe.tasks import Prompts


def other_checkpoint():
    """A model of the same shape with other weights."""
    model = make_model(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    return Checkpoint(TINY_CFG, model, name="runs/other")


def modes(checkpoint, prompts=16, **options):
    options = {"n": (1, 2, 3, 5), "loops": 6} | options
    return [probe("mask", checkpoint, prompts, mode=mode, **options) for mode in ("first", "last")]


def lines(drawn):
    return {trace.name: trace for trace in drawn.data if trace.name}


def cells(made):
    head, *rows = lines_of(made)
    return head, {row[0]: row[1:] for row in rows}  # of several blocks the last


@pytest.mark.parametrize("join", ["list", "dict", "concat along mode", "concat along a dim of its own"])
def test_first_and_last_stand_in_one_figure_and_table_with_their_difference(join, checkpoint, tmp_path):
    two = modes(checkpoint)
    for i, data in enumerate(two):
        write_dataset(data, tmp_path / f"{i}.nc")
    again = [read_dataset(tmp_path / f"{i}.nc") for i in (0, 1)]
    given = {
        "list": again,
        "dict": dict(zip(("first", "last"), again, strict=True)),
        "concat along mode": xr.concat(again, "mode", coords="different", compat="equals"),
        "concat along a dim of its own": xr.concat(again, "which", coords="different", compat="equals"),
    }[join]
    paired = two[0].error.values - two[1].error.values  # [n, loop, example]
    expected = np.median(paired, axis=-1)
    drawn = figure(given)
    shown = lines(drawn)
    np.testing.assert_allclose(shown["first, after 6 loops"].y, two[0]["median"].sel(loop=6))
    np.testing.assert_allclose(shown["last, after 4 loops"].y, two[1]["median"].sel(loop=4))
    np.testing.assert_allclose(shown["first minus last, after 6 loops"].y, expected[:, 5])
    assert {shown["first, after 6 loops"].xaxis, shown["last, after 6 loops"].xaxis} == {"x"}
    assert shown["first minus last, after 6 loops"].xaxis == "x2"
    looks = [
        (line.line.color, line.line.dash) for name, line in shown.items() if "after" in name and "clean" not in name
    ]
    assert len(set(looks)) == len(looks) == 6, "no difference looks like a dataset"
    head, rows = cells(table(given))
    assert head[1:] == ["loops done", "first", "last", "first minus last"], "six columns would not fit a terminal"
    low, high = (end[1, 5] for end in median_interval(paired)[1:])
    assert rows["2"][0] == rows["clean"][0] == "6"
    assert rows["2"][-1] == f"{expected[1, 5]:.3g} [{low:.3g},\u00a0{high:.3g}]"
    assert rows["clean"][-1] == ""
    assert rows["clean"][1].startswith(f"{float(two[0].clean_median.sel(loop=6)):.3g} [")
    assert len(lines_of(table(given))) == 1 + 2 * (1 + two[0].sizes["n"])
    [sentence] = [one for one in findings(given) if "minus" in one]
    largest = np.abs(expected[:, -1]).argmax()
    assert f"(n = {two[0].n.values[largest]}, after 6 loops): {expected[largest, -1]:.3g} [" in sentence


@pytest.mark.parametrize("n", [2, 5, 6])
def test_no_difference_looks_like_a_dataset(n, checkpoint):
    ways = [(mode, fill) for mode in ("first", "last") for fill in ("initial", "zero", "mean")][:n]
    several = [probe("mask", checkpoint, 4, mode=mode, n=(0, 1), fill=fill, loops=3) for mode, fill in ways]
    side, of = grouped(several).beside(), lines(figure(several))
    paired = {name for name in of if any(name.startswith(row.label) for row in side.differences)}
    plain = {name for name in of.keys() - paired if any(name.startswith(row.label) for row in side.rows)}
    assert len(paired) * n == len(plain) * (n - 1) > 0
    looks = [{(of[name].line.color, of[name].line.dash) for name in names} for names in (paired, plain)]
    assert not set.intersection(*looks)
    assert [len(each) for each in looks] == [len(paired), len(plain)], "each its own look"


def test_a_difference_is_that_of_every_prompt_and_is_drawn_by_itself(checkpoint):
    first, last = modes(checkpoint)
    data = difference(first, last)
    paired = first.error.values - last.error.values
    np.testing.assert_allclose(data.difference, paired)
    for name, values in zip(("median", "median_low", "median_high"), median_interval(paired), strict=True):
        np.testing.assert_allclose(data[name], values)
    assert (data.attrs["pair"], data.attrs["of"]) == ("first minus last", "mask")
    assert json.loads(json.loads(data.attrs["subtracted"])["config"])["mode"] == "last"
    back = difference(last, first)
    np.testing.assert_allclose(back["median"], -data["median"])
    assert "first minus last" in figure(data).layout.title.text
    assert {"first minus last, after 6 loops", "last minus first, after 6 loops"} <= lines(figure([data, back])).keys()
    assert table(data).row_count == 4
    with pytest.raises(LoopprobeError, match="differences already"):
        difference(data, back)
    with pytest.raises(LoopprobeError, match=r"several probes \(difference, mask\)"):
        figure([first, data])


def test_only_places_that_both_have_are_compared(checkpoint):
    first = modes(checkpoint, n=(1, 2, 3))[0]
    last = modes(checkpoint, n=(2, 3, 4), loops=3)[1]
    data = difference(first, last)
    assert (data.n.values.tolist(), data.loop.values.tolist()) == ([2, 3], [1, 2, 3])
    expected = first.error.sel(n=[2, 3], loop=[1, 2, 3]).values - last.error.sel(n=[2, 3]).values
    np.testing.assert_allclose(data.difference, expected)


def test_shares_are_compared_as_ratios_of_the_same_resamples(checkpoint):
    one, other = (probe("attribute", model, 12) for model in (checkpoint, other_checkpoint()))
    data = difference(one, other)
    np.testing.assert_allclose(data.share, one.share - other.share, rtol=1e-5, atol=1e-9)
    whole = [part.prediction.values.astype(float) for part in (one, other)]
    values = [part.contribution.values * w for part, w in zip((one, other), whole, strict=True)]
    _, low, high = bootstrap_ratio(values[0], whole[0] ** 2, minus=(values[1], whole[1] ** 2))
    np.testing.assert_allclose(data.share_low, low)
    np.testing.assert_allclose(data.share_high, high)
    assert "difference" not in data
    patched = [
        probe("patch", model, 12, sites=("attn_z",), corruption="label") for model in (checkpoint, other_checkpoint())
    ]
    np.testing.assert_allclose(difference(*patched).attn_z, patched[0].attn_z - patched[1].attn_z, rtol=1e-4, atol=1e-7)


def test_what_is_right_is_compared_as_shares(token_checkpoint):
    other = Checkpoint(TOKEN_CFG, make_token_model(act_fn="relu"), name="runs/other-add")
    one, two = (probe("extrapolate", model, 20, lengths=(1, 2)) for model in (token_checkpoint, other))
    data = difference(one, two)
    paired = one.right.values.astype(float) - two.right.sel(loop=one.loop.values).values
    np.testing.assert_allclose(data.exact, paired.mean(-1))
    np.testing.assert_allclose(data.exact_low, share_difference_interval(paired)[1])
    assert data.exact_high.min() > data.exact_low.max() - 2


def test_a_map_without_a_number_is_not_drawn_and_its_title_says_so(checkpoint):
    one, other = (
        probe("ablate", model, 12, methods=("mean", "zero"), agreement=False, sites=("attn_z",))
        for model in (checkpoint, other_checkpoint())
    )
    assert len(figure([one, other]).data) == 6  # two ways, each of both models and their difference
    other["median"].loc[{"replaced_by": "zero"}] = np.nan
    drawn = figure([one, other])
    assert len(drawn.data) == 5
    assert all(np.isfinite(np.array(trace.z, float)).any() for trace in drawn.data)
    assert [note.text for note in drawn.layout.annotations if "no number" in note.text] == ["other, by zero, no number"]
    other["median"][:] = np.nan
    with pytest.raises(LoopprobeError, match="no number that can be drawn"):
        figure([one, other])


def test_heat_maps_stand_side_by_side_in_one_colour_scale(checkpoint):
    two = [
        probe("ablate", model, 12, sites=("attn_z",), agreement=False, together=False)
        for model in (checkpoint, other_checkpoint())
    ]
    drawn = figure(two)
    one, other, paired = drawn.data
    assert (one.coloraxis, other.coloraxis, paired.coloraxis) == ("coloraxis", "coloraxis", "coloraxis2")
    np.testing.assert_allclose(one.z, two[0]["median"].sel(replaced_by="mean").transpose("component", "loop"))
    expected = np.median(two[0].effect - two[1].effect, axis=-1)[0]
    np.testing.assert_allclose(paired.z, expected, rtol=1e-6)
    largest = max(float(abs(data["median"]).max()) for data in two)
    assert drawn.layout.coloraxis.cmax == -drawn.layout.coloraxis.cmin == pytest.approx(largest)
    assert drawn.layout.coloraxis2.cmax == pytest.approx(np.abs(expected).max())


def test_two_methods_are_compared_place_by_place(checkpoint):
    two = [probe("ablate", checkpoint, 12, methods=(by,), agreement=False) for by in ("mean", "zero")]
    both = probe("ablate", checkpoint, 12, methods=("zero", "mean"), agreement=False)
    expected = both.sel(replaced_by="mean").against_first_median
    np.testing.assert_allclose(difference(*two)["median"], expected, atol=1e-7)
    assert [note.text for note in figure(two).layout.annotations][:2] == ["methods mean", "methods zero"]


def test_labels_say_what_differs_and_nothing_else(checkpoint):
    first, last = modes(checkpoint)
    assert labels_of([first, last]) == ["first", "last"]
    other = modes(other_checkpoint())[0]
    assert labels_of([first, other]) == ["tiny", "other"]
    assert labels_of([first, last, other]) == ["tiny, first", "tiny, last", "other, first"]
    zero = probe("mask", checkpoint, 16, n=(1, 2, 3, 5), loops=6, fill="zero")
    assert labels_of([first, zero]) == ["fill initial", "fill zero"]
    shorter = probe("mask", checkpoint, 16, n=(1, 2, 3, 5), loops=4)
    assert labels_of([first, shorter]) == ["loops 6", "loops 4"]
    assert labels_of([shorter, last]) == ["first", "last"]
    seeds = [probe("mask", checkpoint, checkpoint.held_out(16, seed=seed), loops=4, n=(1,)) for seed in (0, 1)]
    assert labels_of(seeds) == ["prompts of seed 0", "prompts of seed 1"]
    assert labels_of([first]) == [""]


def test_models_and_modes_are_compared_within_each_model(checkpoint):
    four = [*modes(checkpoint), *modes(other_checkpoint())]
    names = lines(figure(four)).keys()
    assert {"tiny: first minus last, after 6 loops", "other: first minus last, after 6 loops"} <= names
    assert not any("tiny" in name and "other" in name for name in names)
    assert str(tables_for(four)[0].title).startswith("mask, tiny, first against tiny, last")


def test_several_measures_stand_in_panels_of_their_own(checkpoint):
    two = [probe("mask", checkpoint, 12, n=(1, 2, 3, 5), loops=4, measure=measure) for measure in ("error", "answer")]
    shown = lines(figure(two))
    assert (shown["error, after 4 loops"].xaxis, shown["answer, after 4 loops"].xaxis) == ("x", "x2")
    assert "no paired differences: one measures error and the other answer" in table(two).caption
    with pytest.raises(LoopprobeError, match="one measures error and the other answer"):
        difference(*two)


@pytest.mark.parametrize("name", ["mask", "lens", "ablate", "weights", "recover", "converge", "attention"])
def test_a_list_of_one_is_the_figure_and_table_of_the_dataset(name, checkpoint):
    options = {"lens": {"train_prompts": 64}, "ablate": {"agreement": False}, "converge": {"loops": 6, "states": 0},
               "weights": {"draws": 100}, "mask": {"n": (1, 2), "loops": 4}}  # fmt: skip
    data = probe(name, checkpoint, 8, **options.get(name, {}))
    assert figure([data]).to_json() == figure(data).to_json()
    assert lines_of(table([data])) == lines_of(table(data))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lens", "attention", "align", "decode", "recover", "steer", "exit", "shift", "edges"])
def test_two_models_stand_in_one_figure_of_every_probe(name, checkpoint):
    options = {
        "lens": {"train_prompts": 64}, "decode": {"train_prompts": 64, "network_loops": 0},
        "steer": {"fit_prompts": 32}, "align": {"steps": 4, "fit_prompts": 16},
        "exit": {"loops": 6}, "edges": {"steps": 1, "exact": 1},
        "shift": {"shifts": ("noise",)},
    }  # fmt: skip
    two = [probe(name, model, 8, **options.get(name, {})) for model in (checkpoint, other_checkpoint())]
    drawn = figure(two)
    told = " ".join([trace.name or "" for trace in drawn.data] + [note.text for note in drawn.layout.annotations])
    assert "tiny" in told
    assert "other" in told
    head = " ".join(cell for row in lines_of(table(two))[:2] for cell in row)
    assert "tiny" in head
    assert len(figures(two)) > 1


def refused(call, *given):
    with pytest.raises(LoopprobeError) as error:
        call(*given)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_stand_side_by_side_is_refused_in_one_line(checkpoint):
    first, last = modes(checkpoint)
    lens = probe("lens", checkpoint, 8, train_prompts=64)
    tokens = modes(checkpoint, unit="token")[1]
    each = [
        probe("ablate", checkpoint, 6, agreement=False, each_position=each_position, positions="query")
        for each_position in (True, False)
    ]
    for show in (figure, table):
        assert "several probes (lens, mask)" in refused(show, [first, lens])
        assert "no dataset" in refused(show, [])
        assert "no dataset" in refused(show, {})
        assert "comes twice" in refused(show, [first, first])
        assert "unit is point and token" in refused(show, [first, tokens])
        assert "dim 'position'" in refused(show, each)
        assert "no n in common" in refused(show, [first, modes(checkpoint, n=(4, 6))[1]])
        assert "str is no dataset" in refused(show, {"a": "text"})
        assert "all are missing" in refused(show, [first, last.assign(median=last["median"] * np.nan)])
    assert "no number for each prompt" in refused(
        difference, lens, probe("lens", other_checkpoint(), 8, train_prompts=64)
    )
    assert "several probes" in refused(difference, first, lens)
    assert "no n in common" in refused(difference, first, modes(checkpoint, n=(4, 6))[1])
    fixed = [probe("paths", model, 2, loops=130) for model in (checkpoint, other_checkpoint())]
    assert "one by one" in refused(figure, fixed)
    assert figures(fixed).keys() == {"paths-tiny", "paths-other", "paths-plane-tiny", "paths-plane-other"}


def test_a_table_shows_all_places_and_says_where_it_does_not(checkpoint):
    several = [data for one in (checkpoint, other_checkpoint()) for data in modes(one, n=(0, 1, 2, 3, 4, 5))]
    [shown] = tables_for(several)
    assert {row[0] for row in lines_of(shown)[1:]} >= {"0", "1", "2", "3", "4", "5"}
    assert "rows" not in shown.caption
    many = [data.assign_coords(model=f"m{i}") for i in range(20) for data in several[:2]]
    [shown] = tables_for(many)
    assert "4 of 6 rows" in shown.caption
    longer = [data.isel(n=np.arange(50) % 6).assign_coords(n=np.arange(50)) for data in several[:2]]
    [shown] = tables_for(longer)
    assert "12 of 50 rows" in shown.caption
    assert len(lines_of(shown)) == 1 + 2 * (12 + 1)  # names, and after two loops the places and the clean run


def test_prompts_of_one_scale_alone_are_paired(checkpoint):
    prompts = checkpoint.held_out(6)
    own = [Prompts(prompts.xs, prompts.ys, scale=scale) for scale in (3.0, 3.0, 3.1)]
    found = (probe("converge", checkpoint, each, loops=3, states=0) for each in own)
    one, same, other = (data.assign_coords(model=name) for data, name in zip(found, "abc", strict=True))
    assert float(abs(difference(one, same).difference).max()) == 0
    with pytest.raises(LoopprobeError, match=r"divided by 3 in one and by 3\.1 in the other"):
        difference(one, other)
    answers = [
        probe("mask", checkpoint, each, n=(3,), loops=2, measure="answer").assign_coords(model=name)
        for each, name in zip(own[::2], "ac", strict=True)
    ]
    assert float(abs(difference(*answers).difference).max()) == 0


def test_differences_of_other_prompts_are_refused_however_alike_their_record(checkpoint):
    first = modes(checkpoint)[0]
    assert "prompts differ" in refused(difference, first, modes(checkpoint, prompts=8)[1])
    assert "prompts differ" in refused(difference, first, modes(checkpoint, prompts=checkpoint.held_out(16, seed=1))[1])
    draw = torch.Generator().manual_seed(3)
    mine = [Prompts(torch.randn(4, 6, 3, generator=draw), torch.randn(4, 6, generator=draw), {}) for _ in range(2)]
    one, other = (modes(checkpoint, prompts=prompts) for prompts in mine)
    assert "prompts differ" in refused(difference, one[0], other[1])
    assert difference(*one).difference.sizes["example"] == 4
    old = [
        data.assign_attrs({k: v for k, v in data.attrs.items() if k != "prompts_digest"}) for data in modes(checkpoint)
    ]
    np.testing.assert_allclose(difference(*old).difference, difference(*modes(checkpoint)).difference)
    assert (
        "no paired differences: their prompts differ"
        in figure([first, modes(checkpoint, prompts=8)[1]]).layout.title.text
    )


def test_columns_that_are_empty_are_left_out(checkpoint):
    one, two = (
        probe("ablate", checkpoint, 6, agreement=False, methods=methods) for methods in (("mean",), ("mean", "zero"))
    )
    assert "there, minus mean" not in lines_of(table(one))[0]
    assert "there, minus mean" in lines_of(table(two))[0]


def test_the_head_with_the_largest_effect_is_named(checkpoint):
    data = probe("ablate", checkpoint, 8, agreement=False)
    heads = data["median"].sel(replaced_by="mean").sel(component=[n for n in data.component.values if n[:4] == "head"])
    largest = heads.isel({dim: int(i) for dim, i in abs(heads).argmax(...).items()})
    assert f"{largest.component.item()} in loop {int(largest.loop)} does most" in figure(
        data
    ).layout.title.text.replace("<br>", " ")
    share = probe("attribute", checkpoint, 8)
    heads = share.share.sel(component=[n for n in share.component.values if n[:4] == "head"])
    largest = heads.isel({dim: int(i) for dim, i in abs(heads).argmax(...).items()})
    assert f"of all heads {largest.component.item()} wrote most, in loop {int(largest.loop)}" in findings(share)[0]
    patched = probe("patch", checkpoint, 8, corruption="label", sites=("z", "attn_z"))
    largest = patched.attn_z.isel({dim: int(i) for dim, i in abs(patched.attn_z).argmax(...).items()})
    assert f"of all heads head {int(largest.layer)}.{int(largest['head'])} does most" in findings(patched)[0]


@pytest.mark.slow
def test_the_command_line_compares_modes_and_saved_results(command, checkpoint):
    other = other_checkpoint()
    for name, one in (("a", checkpoint), ("b", other)):
        Path(name).mkdir()
        save(one, Path(name))
    options = ["--n", "1,2", "--prompts", 6, "--loops", 3]
    assert (
        command("mask", "--ckpt", "a", "--ckpt", "b", "--mode", "last", "--mode", "first", *options, "--out", "o")[0]
        == 0
    )
    stems = {path.stem for path in Path("o").glob("*.nc")}
    assert stems == {f"mask-{label}-{mode}" for label in "ab" for mode in ("first", "last")} | {
        f"mask-difference-{label}" for label in "ab"
    }
    assert Path("o/mask.html").exists()
    expected = read_dataset(Path("o/mask-difference-a.nc"))
    first, last = (read_dataset(Path(f"o/mask-a-{mode}.nc")) for mode in ("first", "last"))
    np.testing.assert_allclose(expected.difference, first.error - last.error)
    code, out, _ = command("show", "o/mask-a-first.nc", "o/mask-a-last.nc", "--out", "s")
    assert code == 0
    assert f"{float(expected['median'].sel(n=2, loop=3)):.3g} [" in out
    assert {path.name for path in Path("s").glob("*.nc")} == {"mask-difference.nc"}
    assert command("show", "o/mask-difference-a.nc")[0] == 0
    assert command("show", "o", "--out", "all")[0] == 0
    for given, words in (
        (["o/mask-a-first.nc", "a"], "a is no file or folder of results"),
        (["a", "b"], "show takes one checkpoint and 2 are given"),
        (["none.nc"], "no results at none.nc"),
        (["a", "--png"], "--png go with results"),
    ):
        code, out, err = command("show", *given)
        assert (code, out) == (2, "")
        assert words in err
    assert not Path("results/show-None").exists()


def test_names_of_the_package():
    assert loopprobe.difference is difference
    assert loopprobe.table is table
