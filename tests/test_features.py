"""Dictionaries find features that are known, and ablating one does what a linear loop says."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from other_model import BothWays, OtherSubject, draw
from test_steer import LinearLoop

from loopprobe import figure, figures, load_checkpoint, probe
from loopprobe.errors import LoopprobeError
from loopprobe.probes import features
from loopprobe.probes.dataset import read_dataset, write_dataset
from loopprobe.probes.dictionaries import Dictionaries, dictionary_of, top_k, train_dictionaries, variables_of
from loopprobe.probes.feature_scores import (
    LIFETIMES,
    found_again,
    gains,
    gaussian_like,
    left_by_components,
    lifetimes,
    lives,
)
from loopprobe.probes.features_plan import FeaturesConfig
from loopprobe.probes.pushes import random_pushes
from loopprobe.show.present import findings, tables_for
from loopprobe.store.subject import PromptSpec
from loopprobe.support.statistics import median_interval


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


FEW = {"loops": 3, "k": 2, "n_features": 12, "fit_prompts": 12, "steps": 30, "top": 2}


def random_dictionary(n_features=9, width=6, k=3, several=1, seed=0):
    generator = rng(seed)
    encoder, decoder = (torch.randn(several, n_features, width, generator=generator) for _ in range(2))
    bias, offset = (
        torch.randn(several, n_features, generator=generator),
        torch.randn(several, width, generator=generator),
    )
    return Dictionaries(encoder, 0.1 * bias, F.normalize(decoder, dim=-1), offset, k)


def as_dataset(dictionary):
    """What a run writes of a dictionary."""
    return xr.Dataset(variables_of(dictionary), attrs={"k": dictionary.k})


# Training


def test_known_features_in_superposition_are_recovered():
    """24 directions in 16 dimensions, two of them active in a state; the dictionary has room for twice as many."""
    directions = F.normalize(torch.randn(24, 16, generator=rng()), dim=-1)
    chosen = torch.rand(3, 8000, 24, generator=rng(1)).topk(2).indices
    codes = torch.zeros(3, 8000, 24).scatter(-1, chosen, 1 + torch.rand(3, 8000, 2, generator=rng(2)))
    states = codes @ directions + 0.3
    trained = train_dictionaries(states, 48, 2)
    assert float((trained.decoder[0] @ directions.T).max(0).values.min()) > 0.95, "every direction is found"
    torch.testing.assert_close(trained.decoder.norm(dim=-1), torch.ones(1, 48))
    flat = states.flatten(0, 1)[None]
    left = (trained.decode(trained.encode(flat)) - flat).square().sum() / (flat - flat.mean(1)).square().sum()
    assert float(left) < 0.05


def test_each_loop_has_a_dictionary_of_its_own_features():
    """Two loops with other directions, one at a time: a dictionary a loop finds those of its loop."""
    directions = torch.linalg.qr(torch.randn(8, 8, generator=rng()))[0].unflatten(0, (2, 4))
    states = torch.stack(
        [own[torch.randint(4, (2000,), generator=rng(i))] * 2 + torch.randn(2000, 8, generator=rng(5)) * 0.01
         for i, own in enumerate(directions)]
    )  # fmt: skip
    trained = train_dictionaries(states, 4, 1, by_loop=True, steps=400, learning_rate=2e-2)
    found = trained.decode(trained.encode(states))
    left = (found - states).square().sum((1, 2)) / (states - states.mean(1, keepdim=True)).square().sum((1, 2))
    assert float(left.max()) < 0.1
    shared = train_dictionaries(states, 4, 1, steps=400, learning_rate=2e-2)
    flat = states.flatten(0, 1)[None]
    assert float((shared.decode(shared.encode(flat)) - flat).square().sum() / flat.square().sum()) > 0.2, (
        "8 do not fit in 4"
    )


def test_exactly_k_features_are_active_and_they_are_the_largest():
    dictionary, states = random_dictionary(), torch.randn(1, 50, 6, generator=rng(1))
    codes = dictionary.encode(states)
    inside = (states[0] - dictionary.offset) @ dictionary.encoder[0].T + dictionary.bias
    enough = (inside > 0).sum(-1) >= 3
    assert bool(enough.any())
    assert (codes[0, enough] > 0).sum(-1).unique().tolist() == [3]
    for row, code in zip(inside, codes[0], strict=True):
        expected = [float(max(value, 0)) if value in row.sort().values[-3:] else 0.0 for value in row]
        torch.testing.assert_close(code, torch.tensor(expected))
    decoded = dictionary.offset[0] + sum(codes[0, :, i, None] * dictionary.decoder[0, i] for i in range(9))
    torch.testing.assert_close(dictionary.decode(codes)[0], decoded)
    assert top_k(torch.tensor([3.0, -1.0, 2.0, 5.0]), 2).tolist() == [3, 0, 0, 5]
    assert top_k(torch.tensor([-3.0, -1.0]), 2).tolist() == [0, 0]


def test_a_training_is_that_of_its_seed():
    states = torch.randn(2, 100, 4, generator=rng())
    one, same, other = (train_dictionaries(states, 6, 2, steps=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.decoder, same.decoder)
    assert not torch.equal(one.decoder, other.decoder)


# What dictionaries explain, and where features live


def states_by_hand(model, batch, loops):
    with torch.no_grad():
        e = model.embed(*model.prepare(*batch.inputs))
        z, states = model.initial_state(e), []
        for i in range(loops):
            z = model.step(z, e, i)
            states.append(z)
    return torch.stack(states).float()


def test_explained_variance_is_what_numpy_says(checkpoint):
    prompts = checkpoint.held_out(9)
    data = probe("features", checkpoint, prompts, **FEW)
    states = states_by_hand(checkpoint.model, prompts, 3)[:, :, :11].numpy().astype(float)
    decoder, encoder, bias, offset = (
        data[name].values.astype(float) for name in ("decoder", "encoder", "bias", "offset")
    )
    inside = (states - offset) @ encoder.T + bias
    kept = inside >= np.sort(inside, -1)[..., -2, None]
    codes = np.where(kept, inside.clip(0), 0)
    left = ((offset + codes @ decoder - states) ** 2).sum((1, 2, 3))
    spread = ((states - states.mean((1, 2), keepdims=True)) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(data.explained.sel(dictionary="shared"), 1 - left / spread, rtol=1e-4)
    np.testing.assert_allclose(
        data.explained_over_loops.sel(dictionary="shared"), 1 - (left / spread).mean(), rtol=1e-4
    )
    np.testing.assert_allclose(data.rate, (codes > 0).mean((1, 2)).T, atol=1e-6)
    np.testing.assert_allclose(data.activation, codes.mean((1, 2)).T, rtol=1e-4, atol=1e-6)
    shown = data.shown.values
    np.testing.assert_allclose(data.map_activation, codes.mean(1)[..., shown].transpose(2, 0, 1), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(data.map_rate, (codes > 0).mean(1)[..., shown].transpose(2, 0, 1), atol=1e-6)
    assert float(data.dead.sel(dictionary="shared")) == pytest.approx(1 - (codes > 0).any((0, 1, 2)).mean())
    assert shown.tolist() == np.argsort(-codes.mean((0, 1, 2)), kind="stable")[:2].tolist()
    ends = data.explained_low, data.explained, data.explained_high
    assert all(((one <= other) | one.isnull()).all() for one, other in itertools.pairwise(ends))
    assert data.n_features.values.tolist() == [12, 12, 12, 36, 0, 12]


class Visited(BothWays):
    """The state holds a direction for its token and one for the token before; after loop 3 alone it holds one more."""

    known = torch.linalg.qr(torch.randn(12, 12, generator=rng()))[0]

    def embed(self, tokens):
        here, before = tokens % 5, tokens.roll(1, 1) % 5
        sizes = 1 + tokens[..., None] / 7, 1 + tokens.roll(1, 1)[..., None] / 7
        return sizes[0] * self.known[here] + sizes[1] * self.known[5 + before]

    def step(self, z, e, loop=0, past=None):
        return e + (2 + e[..., :1]) * self.known[10] * (loop == 2)


def test_a_feature_that_lives_in_one_loop_is_said_to_live_there():
    subject = OtherSubject(model=Visited())
    config = FeaturesConfig(k=3, n_features=16, loops=5, fit_prompts=100, compare=False, top=16)
    data = features.run(subject, draw(16), config)
    assert float(data.explained_over_loops[0]) > 0.95
    cosines = data.decoder.values @ subject.model.known.numpy().T
    assert (cosines.max(0)[:11] > 0.95).all(), "what every loop holds is found too"
    visitor = int(cosines[:, 10].argmax())
    of_feature = data.sel(feature=visitor)
    assert of_feature.lifetime == "one loop"
    assert of_feature.lives.values.tolist() == [False, False, True, False, False]
    assert float(of_feature.rate.sel(loop=3)) > 0.95
    for known in range(10):
        assert data.lifetime[int(cosines[:, known].argmax())] == "all loops"
    of_table = dict(row[:2] for row in _rows(tables_for([data])[1]))
    assert of_table[str(visitor)] == "3"


def _rows(table):
    return zip(*[[str(cell) for cell in column.cells] for column in table.columns], strict=True)


def test_lifetimes_of_known_activations():
    activation = np.array(
        [[1, 0, 5, 0, 0, 0.04], [1, 0, 0, 2, 0, 1.0], [2, 3, 4, 3, 0, 0.3], [9, 0, 1, 2, 0, 1.0]]
    )  # loop by feature
    alive = lives(activation, 0.1)
    assert alive.astype(int).T.tolist() == [
        [1, 1, 1, 1], [0, 0, 1, 0], [1, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]
    ]  # fmt: skip
    assert [LIFETIMES[kind] for kind in lifetimes(alive)] == [
        "all loops", "one loop", "loops apart", "a run of loops", "dead", "a run of loops"
    ]  # fmt: skip


def test_features_are_found_again_whatever_their_order():
    decoder = F.normalize(torch.randn(10, 6, generator=rng()), dim=-1)
    order = torch.randperm(10, generator=rng(1))
    alive = np.ones(10, bool)
    np.testing.assert_allclose(found_again(decoder, alive, decoder[order], alive), 1, rtol=1e-5)
    some = alive.copy()
    some[[2, 5]] = False
    found = found_again(decoder, some, decoder[order], alive)
    assert np.flatnonzero(np.isnan(found)).tolist() == [2, 5]
    np.testing.assert_allclose(found[some], 1, rtol=1e-5)


def test_components_and_gaussian_states_have_the_moments_of_the_states():
    mixing = torch.randn(3, 5, 5, generator=rng())
    states = torch.randn(3, 400, 7, 5, generator=rng(1)) @ mixing[:, None] + 2
    flat = states.flatten(1, 2).numpy()
    left = left_by_components(states, states, 2)
    for own, expected in zip(left, flat, strict=True):
        singular = np.linalg.svd(expected - expected.mean(0), compute_uv=False)
        np.testing.assert_allclose(own.sum(), (singular[2:] ** 2).sum(), rtol=1e-3)
    drawn = gaussian_like(states, 4000, rng(2)).flatten(1, 2).numpy()
    for one, other in zip(drawn, flat, strict=True):
        np.testing.assert_allclose(one.mean(0), other.mean(0), atol=0.1)
        np.testing.assert_allclose(np.cov(one.T), np.cov(other.T), atol=0.05 * np.cov(other.T).max())


def test_gains_are_paired_differences_with_all_loops_alike():
    generator = np.random.default_rng(0)
    spread = generator.uniform(1, 2, (4, 30)) * np.array([1, 10, 100, 1000])[:, None]
    lefts = [0.3 * spread, 0.3 * spread + 0.2 * spread, generator.uniform(0, 1, (4, 30)) * spread]
    value, low, high = gains(lefts, spread)
    np.testing.assert_allclose([value[:2], low[:2], high[:2]], [[0, 0.2]] * 3, atol=1e-9)
    expected = [(one.sum(1) / spread.sum(1)).mean() for one in lefts]
    np.testing.assert_allclose(value, np.array(expected) - 0.3, rtol=1e-6, atol=1e-9)
    assert low[2] < value[2] < high[2]


# Ablating a feature


@pytest.fixture
def linear():
    return OtherSubject(model=LinearLoop())


def test_ablating_a_feature_of_a_linear_loop_is_what_its_powers_say(linear):
    model, dictionary = linear.model, random_dictionary(20, 12, 4)
    prompts, options = draw(8), {"loops": 7, "read_loop": 6, "measure": "answer", "feature": "0,3,11"}
    data = features.run(linear, prompts, FeaturesConfig(**options, in_loops="2"), dictionary=as_dataset(dictionary))
    states = states_by_hand(model, prompts, 7)
    codes = dictionary.encode(states[1][:, -1][None])[0]
    power = torch.linalg.matrix_power(model.A.T, 4)
    assert data.shown.values.tolist() == [0, 3, 11]
    assert bool((codes[:, [0, 3, 11]] > 0).any())
    for i in (0, 3, 11):
        after = -codes[:, i, None].double() * (dictionary.decoder[0, i].double() @ power)
        np.testing.assert_allclose(
            data.effect.sel(shown=i), (after @ model.head.weight[1]).detach(), rtol=1e-4, atol=1e-6
        )
    np.testing.assert_allclose(data["median"], np.median(data.effect, axis=1), atol=1e-7)
    difference = median_interval((data.effect - data.control_effect.mean("control")).values)[0]
    np.testing.assert_allclose(data.against_control_median, difference, atol=1e-7)
    silent = (codes[:, 0] == 0).numpy()
    if silent.any():
        assert (data.control_effect.sel(shown=0).values[:, silent] == 0).all(), "nothing is taken where nothing is"


def test_ablating_in_every_loop_is_the_loop_by_hand(linear):
    model, dictionary = linear.model, random_dictionary(20, 12, 4)
    prompts, config = draw(8), FeaturesConfig(loops=4, measure="answer", feature=3, positions="0,11")
    data = features.run(linear, prompts, config, dictionary=as_dataset(dictionary))
    with torch.no_grad():
        e = model.embed(*model.prepare(*prompts.inputs))
        z = clean = model.initial_state(e)
        for _ in range(4):
            z, clean = model.step(z, e), model.step(clean, e)
            for token in (0, 11):
                code = dictionary.encode(z[:, token].float()[None])[0, :, 3, None]
                z[:, token] -= (code * dictionary.decoder[0, 3]).double()
        expected = (z - clean)[:, -1] @ model.head.weight[1]
    np.testing.assert_allclose(data.effect[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(data.clean, model.predict(clean)[:, -1, 1].detach(), rtol=1e-5)


def test_a_dictionary_that_loses_nothing_changes_nothing_in_its_place(linear):
    both = torch.cat([torch.eye(12), -torch.eye(12)])[None]
    exact = Dictionaries(both, torch.zeros(1, 24), both, torch.zeros(1, 12), 12)
    data = features.run(linear, draw(7), FeaturesConfig(loops=4), dictionary=as_dataset(exact))
    np.testing.assert_allclose(data.replaced_effect.sel(dictionary="shared"), 0, atol=1e-5)
    np.testing.assert_allclose(data.explained.sel(dictionary="shared"), 1, atol=1e-6)
    nothing = Dictionaries(0 * both, torch.zeros(1, 24), both, torch.zeros(1, 12), 12)
    data = features.run(linear, draw(7), FeaturesConfig(loops=4, in_loops="last"), dictionary=as_dataset(nothing))
    outputs = linear.model.head.bias[1].item() - data.clean  # the answer of a state of zeros
    data = features.run(
        linear, draw(7), FeaturesConfig(loops=4, in_loops="last", measure="answer"), dictionary=as_dataset(nothing)
    )
    outputs = linear.model.head.bias[1].item() - data.clean
    np.testing.assert_allclose(data.replaced_effect.sel(dictionary="shared"), outputs, rtol=1e-4, atol=1e-6)


def test_random_pushes_are_as_long_as_they_shall_be():
    lengths = torch.rand(3, 4, 5, generator=rng())
    lengths[0, 0] = 0
    drawn = random_pushes(lengths, 7, rng(1))
    torch.testing.assert_close(drawn.norm(dim=-1), lengths)
    cosine = F.cosine_similarity(drawn[1, 1, 1], drawn[1, 1, 2], dim=0)
    assert abs(float(cosine)) < 0.999, "another direction at every place"


# Prompts, files and refusals


def test_tokens_measures_and_several_models(token_checkpoint, checkpoint):
    def surprise(outputs, prompts):
        return prompts.errors(outputs)[..., -1].square()

    surprise.unit = "nats²"
    data = probe("features", token_checkpoint, 7, measure=surprise, **FEW)
    assert data.effect.attrs["units"] == "nats²"
    prompts = token_checkpoint.held_out(7)
    with torch.no_grad():
        outputs = token_checkpoint.model(*prompts.inputs, n_loops=3, read_at=prompts.read_at)[-1]
    np.testing.assert_allclose(data.clean, prompts.errors(outputs)[:, -1].square(), rtol=1e-4)
    assert any("surprise" in table.caption for table in tables_for([data]))
    other, same = (probe("features", one, 7, **FEW) for one in (checkpoint, token_checkpoint))
    assert next(iter(figures([other, same]))) == "features"
    assert len(figures([other, same])) == 1 + 2 * 3
    assert tables_for([other, same])[0].row_count == 12
    beside = figure([data, same])  # the measure differs, what the dictionaries explain does not
    assert "explained variance" in str(beside.layout)
    lines = [trace.y for trace in beside.data if trace.mode and "lines" in trace.mode and trace.y is not None]
    shared = data.explained.sel(dictionary="shared").values
    assert any(len(y) == len(shared) and np.allclose(y, shared) for y in lines)


def test_threads_change_nothing(checkpoint):
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            made.append(probe("features", checkpoint, 7, **FEW))
        finally:
            torch.set_num_threads(1)
    one, other = (data.drop_vars("source").drop_attrs() for data in made)
    xr.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_language_model_is_read_on_given_training_texts():
    subject = load_checkpoint("hf:raven-docs", trust_remote_code=True)
    texts = ("the state of the loop", "a loop of the state", "the loop is a state")
    batches = {}
    for text in texts:
        for batch, _ in subject.batches(PromptSpec(text=(text,))):
            batches.setdefault(batch.n_tokens, []).append(batch)
    prompts = next(iter(batches.values()))[0]
    with pytest.raises(LoopprobeError, match="training="):
        probe("features", subject, prompts)
    data = probe("features", subject, prompts, training=prompts, **{**FEW, "loops": 2}, compare=False)
    assert data.effect.sizes == {"shown": 2, "example": 1}
    assert data.decoder.shape == (12, subject.model.sizes.d_model)


def test_the_dictionary_of_a_file_is_that_of_the_run_and_steers(checkpoint, tmp_path):
    prompts = checkpoint.held_out(8)
    data = probe("features", checkpoint, prompts, feature="1,4", **{**FEW, "top": 1})
    write_dataset(data, tmp_path / "features.nc")
    path = str(tmp_path / "features.nc")
    options = {"loops": 3, "feature": "4", "lives": 0.1}
    for given in (path, read_dataset(tmp_path / "features.nc")):
        again = probe("features", checkpoint, prompts, dictionary=given, **options)
        np.testing.assert_allclose(again.effect.sel(shown=4), data.effect.sel(shown=4), atol=1e-6)
        np.testing.assert_array_equal(again.lifetime, data.lifetime)
        assert again.dictionary.values.tolist() == ["shared"]
        assert again.attrs["fitted_on"] == data.attrs["fitted_on"]
        assert list(figures([again])) == ["features", "features-lives", "features-where", "features-ablated"]
        assert findings([again])
        assert " in me" not in tables_for([again])[0].caption
        there = again.assign_attrs(dictionary_of="me")
        assert " in me; dead" in tables_for([there])[0].caption, "of another model"
    assert json.loads(again.attrs["config"])["dictionary"] is None
    torch.testing.assert_close(dictionary_of(data).decoder[0], torch.tensor(data.decoder.values))
    steered = {"strengths": (1.0,), "loops": 3, "unit": "norm"}
    by_file = probe("steer", checkpoint, prompts, direction=f"{path}:4", **steered)
    by_array = probe("steer", checkpoint, prompts, direction=data.decoder.sel(feature=4).values, **steered)
    np.testing.assert_allclose(by_file.response, by_array.response, rtol=1e-6)
    assert by_file.attrs["steered_by"] == f"the direction in {path}:4"
    np.testing.assert_allclose(by_file.direction[0, 0], data.decoder.sel(feature=4), rtol=1e-5)
    for wrong, words in ((f"{path}:12", "0 to 11"), (f"{tmp_path}/none.nc:1", "no results at")):
        with pytest.raises(LoopprobeError, match=words) as error:
            probe("steer", checkpoint, prompts, direction=wrong, **steered)
        assert "\n" not in str(error.value)
    write_dataset(by_file, tmp_path / "steer.nc")
    with pytest.raises(LoopprobeError, match="holds no dictionary"):
        probe("steer", checkpoint, prompts, direction=f"{tmp_path}/steer.nc:1", **steered)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loops": 1}, "nothing to compare"),
        ({"n_features": 4}, "must be at least"),
        ({"n_features": 4, "compare": False}, r"at least k|at least 8"),
        ({"feature": 12}, "feature 12 must be below 12"),
        ({"in_loops": 9}, "loop 9 must be"),
        ({"in_loops": 3, "read_loop": 2}, "lower in_loops"),
        ({"positions": "nobody"}, "nobody"),
        ({"measure": "margin"}, "of tokens alone"),
        ({"k": 0}, "k"),
        ({"lives": 1.0}, "lives"),
        ({"dictionary": "none.nc"}, "no results at"),
        ({"fit_prompts": 2**30}, "lower"),
    ],
)
def test_bad_options_are_refused(options, words, checkpoint):
    with pytest.raises(LoopprobeError, match=words) as error:
        probe("features", checkpoint, 7, **({"n_features": 12, "k": 2, "loops": 3} if "n_features" not in options and
              "dictionary" not in options else {}) | options)  # fmt: skip
    assert "\n" not in str(error.value)


def test_models_and_dictionaries_that_do_not_fit_are_refused(checkpoint):
    with pytest.raises(LoopprobeError, match="states of 6 numbers"):
        probe("features", checkpoint, 7, dictionary=as_dataset(random_dictionary()))
    with pytest.raises(LoopprobeError, match="leave it out"):
        probe("features", checkpoint, 7, dictionary=as_dataset(random_dictionary()), n_features=9)
    with pytest.raises(LoopprobeError, match="holds no dictionary"):
        probe("features", checkpoint, 7, dictionary=xr.Dataset())
    with pytest.raises(LoopprobeError, match="not looped"):
        probe("features", load_checkpoint("lr-L12"), 7)
