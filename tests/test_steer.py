"""Steering is what a push by hand does, and on a linear loop what its powers say."""

import json

import numpy as np
import pytest
import torch
from other_model import BothWays, OtherSubject, draw

from loopprobe import figures, probe
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import add, edited
from loopprobe.probes import steer
from loopprobe.probes.dataset import read_dataset, write_dataset
from loopprobe.probes.decoders import targets_of
from loopprobe.probes.ridge import with_one
from loopprobe.probes.steer_plan import SteerConfig
from loopprobe.show.present import findings, tables_for
from loopprobe.support.statistics import median_interval


class LinearLoop(BothWays):
    """s ← A s + c at every token, with a state that is read linearly."""

    def __init__(self):
        super().__init__()
        turn, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))
        self.A, self.c = 0.8 * turn.double(), torch.linspace(-1, 1, 12).double()
        self.double()

    def step(self, z, e, loop=0, past=None):
        return z @ self.A.T + self.c

    def initial_state(self, e):
        return e


@pytest.fixture
def linear():
    return OtherSubject(model=LinearLoop())


def test_a_push_of_a_linear_loop_is_what_its_powers_say(linear):
    model, v = linear.model, torch.arange(12.0).double()
    options = {"strengths": (-2.0, 0.0, 3.0), "unit": "norm", "loops": 7, "in_loops": "2", "positions": "0:11"}
    data = steer.run(linear, draw(8), SteerConfig(**options, read_loop=6, measure="answer"), direction=v)
    with torch.no_grad():
        e = model.embed(*model.prepare(*draw(8).inputs))
        z, states = e, [e]
        for _ in range(7):
            z = model.step(z, e)
            states.append(z)
    unit, sizes = v / v.norm(), states[2].norm(dim=-1).mean(0)
    np.testing.assert_allclose(data.push_size[0], sizes, rtol=1e-6)
    np.testing.assert_allclose(data.direction[0, 4], unit, rtol=1e-6)
    assert data.loop.values.tolist() == [2, 3, 4, 5, 6, 7]
    for strength in options["strengths"]:
        after = strength * sizes[-1] * (unit @ torch.linalg.matrix_power(model.A.T, 4))
        expected = (after @ model.head.weight[1]).item()
        np.testing.assert_allclose(data.response.sel(strength=strength), expected, rtol=1e-5, atol=1e-6)
        for k in range(6):
            away = abs(strength) * 0.8**k * sizes.norm() / states[2 + k].flatten(1).norm(dim=1)
            np.testing.assert_allclose(data.distance.sel(strength=strength)[k], np.median(away), rtol=1e-5, atol=1e-9)
            as_long = data.control_distance.sel(strength=strength)[k]
            np.testing.assert_allclose(as_long, np.median(away), rtol=1e-5, atol=1e-9)
    shrunk = 0.8**5 * (states[2].flatten(1).norm(dim=1) / states[7].flatten(1).norm(dim=1))
    np.testing.assert_allclose(data.left.sel(strength=[-2, 3]), np.median(shrunk), rtol=1e-5)
    assert np.isnan(data.left.sel(strength=0))
    slope = data.response.sel(strength=3) / 3
    np.testing.assert_allclose(data.slope_median, np.median(slope), rtol=1e-5)
    random = data.control_response.mean("control")
    np.testing.assert_allclose(
        data.against_control_median, median_interval((data.response - random).values)[0], atol=1e-6
    )


def test_a_push_in_several_loops_adds_up(linear):
    v = torch.ones(12).double()
    options = {"strengths": (1.0,), "unit": "norm", "loops": 4}
    both = steer.run(linear, draw(8), SteerConfig(**options, in_loops="1,3"), direction=v).response
    alone = [steer.run(linear, draw(8), SteerConfig(**options, in_loops=at), direction=v).response for at in ("1", "3")]
    np.testing.assert_allclose(both, alone[0] + alone[1], rtol=1e-4)


@pytest.mark.parametrize("subject", ["checkpoint", "token_checkpoint", "other"])
def test_no_push_is_the_clean_run_bit_for_bit(subject, request):
    one = OtherSubject() if subject == "other" else request.getfixturevalue(subject)
    prompts = draw(7) if subject == "other" else one.held_out(7)
    config = SteerConfig(strengths=(0.0, 1.0), loops=3, fit_prompts=40, measure="error")
    data = steer.run(one, prompts, config)
    assert (data.response.sel(strength=0) == 0).all()
    assert (data.control_response.sel(strength=0) == 0).all()
    assert (data.distance.sel(strength=0) == 0).all()
    assert (data.distance.sel(strength=1) > 0).all()
    with torch.no_grad():
        errors = prompts.errors(one.model(*prompts.inputs, n_loops=3, read_at=prompts.read_at)[-1])[:, -1]
    np.testing.assert_allclose(data.clean, errors, rtol=1e-5)


def test_a_push_is_the_edit_by_hand(checkpoint):
    prompts, model = checkpoint.held_out(9), checkpoint.model
    vector = torch.linspace(-1, 2, 16)
    config = SteerConfig(strengths=(2.0,), unit="norm", loops=4, in_loops="2:3", positions="1,query", measure="answer")
    data = steer.run(checkpoint, prompts, config, direction=vector)
    pushes = {}
    for i, loop in enumerate((1, 2)):
        pushes[loop] = torch.zeros(11 + 1, 16)
        pushes[loop][[1, 10]] = torch.tensor(2 * (data.direction * data.push_size)[i].values, dtype=torch.float32)
    with torch.no_grad():
        clean = model(*prompts, 4)[-1, :, -1]
        with edited(model, "z", add(pushes[1]), loops=[1]), edited(model, "z", add(pushes[2]), loops=[2]):
            steered = model(*prompts, 4)[-1, :, -1]
    np.testing.assert_allclose(data.response[0], steered - clean, atol=1e-5)


# Where a direction comes from


def states(model, batch, loop, token):
    with torch.no_grad():
        e = model.embed(*model.prepare(*batch.inputs))
        z = model.initial_state(e)
        for i in range(loop):
            z = model.step(z, e, i)
    return z[:, token].double()


def along(data):
    return data.direction[0, 0].values


def unit(vector):
    return (vector / vector.norm()).numpy()


def test_directions_are_differences_of_means(checkpoint, token_checkpoint):
    prompts, training = checkpoint.held_out(8), checkpoint.held_out(60, seed=3)
    model, config = checkpoint.model, SteerConfig(loops=4)
    data = steer.run(checkpoint, prompts, config, training=training)
    z = states(model, training, 2, 10)
    with torch.no_grad():
        answers = model(*training, 4)[-1, :, -1]
    above = answers > answers.median()
    np.testing.assert_allclose(along(data), unit(z[above].mean(0) - z[~above].mean(0)), atol=1e-6)
    scale = (z @ torch.tensor(along(data))).std()
    np.testing.assert_allclose(data.push_size[0, 0], scale, rtol=1e-5)
    groups = checkpoint.held_out(9, seed=4), checkpoint.held_out(11, seed=5)
    data = steer.run(checkpoint, prompts, config, groups=groups)
    one, other = (states(model, group, 2, 10).mean(0) for group in groups)
    np.testing.assert_allclose(along(data), unit(one - other), atol=1e-6)
    data = steer.run(checkpoint, prompts, config, corrupted=groups[0][:8])
    one, other = (states(model, group, 2, 10).mean(0) for group in (prompts, groups[0][:8]))
    np.testing.assert_allclose(along(data), unit(one - other), atol=1e-6)
    tokens, training = token_checkpoint.held_out(8), token_checkpoint.held_out(60, seed=3)
    z = states(token_checkpoint.model, training, 2, training.query)
    data = steer.run(token_checkpoint, tokens, SteerConfig(loops=4, values=("1", "0")), training=training)
    one, other = (z[training.answers[:, -1] == value].mean(0) for value in (1, 0))
    np.testing.assert_allclose(along(data), unit(one - other), atol=1e-6)
    assert data.attrs["measure"] == "logit of 1 minus that of 0"
    with torch.no_grad():
        logits = token_checkpoint.model(*tokens.inputs, n_loops=4, read_at=tokens.read_at)[-1][:, -1]
    np.testing.assert_allclose(data.clean, logits[:, 1] - logits[:, 0], atol=1e-5)
    name, known = next(iter(training.results().items()))
    token = next(i for i in range(training.n_tokens) if {0, 1} <= set(known[:, i].tolist()))
    z, known = states(token_checkpoint.model, training, 2, token), known[:, token]
    config = SteerConfig(direction=name, loops=4, values=("0", "1"), positions=token)
    data = steer.run(token_checkpoint, tokens, config, training=training)
    np.testing.assert_allclose(along(data), unit(z[known == 0].mean(0) - z[known == 1].mean(0)), atol=1e-6)
    assert data.attrs["measure"] == "answer"


def test_directions_are_weights_of_decoders(checkpoint, token_checkpoint):
    prompts, training = checkpoint.held_out(8), checkpoint.held_out(60, seed=3)
    config = SteerConfig(direction="decoder:w, least squares:2", loops=4, ridge=1e-2)
    data = steer.run(checkpoint, prompts, config, training=training)
    z = states(checkpoint.model, training, 2, 10)
    target = targets_of(training, [2])["w, least squares"][0, :, 10, 2]
    x, penalty = with_one(z), torch.eye(17).double() * 1e-2 * 60 * z.var(0, unbiased=False).mean()
    penalty[-1, -1] = 0
    np.testing.assert_allclose(along(data), unit(torch.linalg.solve(x.T @ x + penalty, x.T @ target)[:-1]), atol=1e-6)
    tokens, training = token_checkpoint.held_out(8), token_checkpoint.held_out(60, seed=3)
    config = SteerConfig(direction="decoder:answer", loops=4, values=("0", "1"))
    data = steer.run(token_checkpoint, tokens, config, training=training)
    z, right = states(token_checkpoint.model, training, 2, training.query), training.answers[:, -1]
    x, penalty = with_one(z), torch.eye(9).double() * 1e-3 * 60 * z.var(0, unbiased=False).mean()
    penalty[-1, -1] = 0
    target = (right == 0).double() - (right == 1).double()
    np.testing.assert_allclose(along(data), unit(torch.linalg.solve(x.T @ x + penalty, x.T @ target)[:-1]), atol=1e-6)


def test_a_push_towards_a_decoded_prediction_moves_what_the_decoder_reads():
    """On a model that was trained: along the weights of a decoder the prediction rises with the strength."""
    from loopprobe import load_checkpoint

    checkpoint = load_checkpoint("lr-b5-T5")
    config = SteerConfig(direction="decoder:prediction, least squares", in_loops="last", strengths=(-2.0, 2.0))
    data = steer.run(checkpoint, checkpoint.held_out(64), config)
    assert float(data.median_high.sel(strength=-2)) < 0 < float(data.median_low.sel(strength=2))
    assert float(data.against_control_median_low.sel(strength=2)) > 0


@pytest.mark.parametrize("kind", ["npy", "pt"])
def test_a_file_holds_what_a_tensor_does(kind, checkpoint, tmp_path):
    vector = np.linspace(1, 2, 16)
    if kind == "npy":
        np.save("direction.npy", vector)
    else:
        torch.save(torch.tensor(vector), "direction.pt")
    prompts, options = checkpoint.held_out(7), {"loops": 3, "strengths": (1.0,)}
    data = probe("steer", checkpoint, prompts, direction=f"direction.{kind}", **options)
    expected = probe("steer", checkpoint, prompts, direction=vector, **options)
    np.testing.assert_array_equal(data.response, expected.response)
    write_dataset(data, tmp_path / "data.nc")
    data = read_dataset(tmp_path / "data.nc")
    assert list(figures([data])) == ["steer"]
    assert tables_for([data])[0].row_count == 1
    assert "push of strength 1 after loop 1" in findings([data])[0]
    assert json.loads(data.attrs["config"])["direction"] == f"direction.{kind}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"in_loops": 9}, "loop 9 must be"),
        ({"in_loops": 4, "read_loop": 2}, "lower in_loops"),
        ({"read_loop": 9, "loops": 4}, "read_loop"),
        ({"positions": "nobody"}, "nobody"),
        ({"strengths": ()}, "strengths"),
        ({"strengths": (1.0, 1.0)}, "strengths"),
        ({"strengths": (float("nan"),)}, "strengths"),
        ({"values": ("1",)}, "must be two"),
        ({"values": ("1", "0")}, "leave them out"),
        ({"corruption": "nothing", "direction": "corrupted"}, "corruption"),
        ({"measure": "margin"}, "of tokens alone"),
        ({"unit": "miles"}, "unit"),
    ],
)
def test_bad_options_are_refused(options, words, checkpoint):
    with pytest.raises(LoopprobeError, match=words) as error:
        probe("steer", checkpoint, 7, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("direction", "words"),
    [
        ("carry", "not known"),
        ("decoder:nothing", "names no target"),
        ("decoder:w, least squares:3", "entry from 0 to 2"),
        ("none.npy", "no direction at"),
        ("text.npy", "holds no array"),
    ],
)
def test_directions_that_are_not_there_are_refused(direction, words, checkpoint, tmp_path):
    (tmp_path / "text.npy").write_text("nothing")
    with pytest.raises(LoopprobeError, match=words) as error:
        steer.run(checkpoint, checkpoint.held_out(7), SteerConfig(direction=direction))
    assert "\n" not in str(error.value)


def test_what_is_given_is_checked(checkpoint, token_checkpoint, unchecked):
    prompts, config = checkpoint.held_out(7), SteerConfig()
    for given, words in (
        ({"direction": torch.ones(5)}, "shape"),
        ({"direction": torch.full((16,), torch.nan)}, "NaN"),
        ({"direction": torch.zeros(16)}, "zero at a chosen loop"),
        ({"direction": torch.ones(16), "groups": (prompts, prompts)}, "each is a direction"),
        ({"groups": (prompts,)}, "two batches"),
        ({"groups": (prompts, token_checkpoint.held_out(7))}, "two batches"),
        ({"corrupted": prompts[:3]}, "give as many"),
    ):
        with pytest.raises(LoopprobeError, match=words):
            steer.run(checkpoint, prompts, config, **given)
    with pytest.raises(LoopprobeError, match="choose norm"):
        steer.run(checkpoint, prompts[:1], config, direction=torch.ones(16))
    with pytest.raises(LoopprobeError, match="must be two of answer"):
        steer.run(token_checkpoint, token_checkpoint.held_out(4), SteerConfig(values=("1", "9")))
