"""Every probe gives the known answer of two models whose loops were built by hand: one copies, one adds."""

import functools

import numpy as np
import pytest
import torch
from hand_built import LINEAR, SURE, carrier, copier

from loopprobe import LoopprobeError, figure, figures, probe
from loopprobe.dynamics.limits import Limit
from loopprobe.model.masks import kept_tokens
from loopprobe.show.present import table, tables_for
from loopprobe.tasks import TokenPrompts

BOTH = pytest.mark.parametrize("make", [copier, carrier])
OPTIONS = {
    "attention": {}, "extrapolate": {}, "exit": {"loops": 8}, "lens": {"train_prompts": 256},
    "converge": {"loops": 12, "states": 2, "far": 256}, "decode": {"loops": 6, "train_prompts": 512},
    "fixed_points": {"far": 256, "lyapunov_steps": 5}, "mask": {"n": tuple(range(6)), "loops": 6, "mode": "last"},
    "patch": {"sites": ("z_pre", "z", "q", "k", "v", "attn_z")}, "paths": {"loops": 256, "positions": (1, 3, -1)},
    "recover": {"loops": 9, "after": 2, "positions": (1, 3, -1), "sizes": (0.1, 1.0)},
}  # fmt: skip
FEW = {"fixed_points": 3, "paths": 2}  # prompts
OF_SMALL_MOVES = ("converge", "decode", "fixed_points", "patch", "recover")  # where norms are to be linear


@functools.cache
def found(make, name):
    """The prompts of a model, and what a probe says of them."""
    checkpoint = make(eps=LINEAR) if name in OF_SMALL_MOVES else make()
    prompts = checkpoint.held_out(FEW.get(name, 64))
    return prompts, probe(name, checkpoint, prompts, **OPTIONS[name])


def read_by(make, prompts, loops, kept=True):
    """The answers that a model gives after every loop, [loop, batch, answer], if so much of its state is kept."""
    tokens, read = prompts.tokens, []
    kept, columns = torch.as_tensor(kept), torch.tensor([0, 1, 1, 2, 0, 0, 0, 0, 0, 0])[tokens]
    state = tokens if make is copier else torch.zeros_like(tokens)
    for _ in range(loops):
        if make is copier:
            state = state.where(kept, tokens)
            state = torch.cat([state[:, :1], state[:, :-1]], 1)
            answers = state.where(state < prompts.task.symbols, 0)
        else:
            state = torch.nn.functional.pad((columns + state.where(kept, 0) >= 2).long()[:, :-1], (1, 0))
            answers = (columns + state) % 2
        read.append(answers[:, prompts.read_at])
    return torch.stack(read)


def right(make, prompts, loops, **kept):
    return (read_by(make, prompts, loops, **kept) == prompts.answers).numpy()


def chains(prompts):
    """How many places back the carry that comes into each token was made, 0 where none does."""
    back = [torch.zeros_like(prompts.tokens[:, 0])]
    for column in prompts.tokens.unbind(1)[:-1]:
        passed = ((column == 1) | (column == 2)) & (back[-1] > 0)
        back.append(torch.where(column == 3, 1, torch.where(passed, back[-1] + 1, 0)))
    return torch.stack(back, 1)


def at_rest(make, prompts):
    """The loops after which the state of each token stays."""
    places = torch.arange(prompts.n_tokens).expand(prompts.n_prompts, -1)
    return (places if make is copier else chains(prompts)).clamp_min(1).numpy()


def close(found, wanted, atol=1e-4):
    np.testing.assert_allclose(found, np.broadcast_to(wanted, np.shape(found)), rtol=0, atol=atol)


@BOTH
@pytest.mark.parametrize("eps", [1e-5, LINEAR])
@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_the_models_answer_as_they_were_built_to(make, eps, length):
    checkpoint = make(eps=eps)
    prompts = checkpoint.held_out(64, length=length)
    logits = checkpoint.model(*prompts.inputs, n_loops=20, read_at=prompts.read_at)
    assert torch.equal(logits.argmax(-1), read_by(make, prompts, 20))
    solved = right(make, prompts, 20).all(-1)  # loop, prompt
    if make is copier:
        assert (solved.mean(1) == 1).nonzero()[0].tolist() == [length - 1]
    else:
        assert np.array_equal(solved, chains(prompts).amax(1).numpy() <= np.arange(1, 21)[:, None])


@BOTH
def test_error_and_accuracy_by_loop_are_those_of_the_algorithm(make):
    prompts, data = found(make, "converge")
    wrong = ~right(make, prompts, 12)
    close(data.accuracy, 1 - wrong.mean((1, 2)))
    close(data.error, SURE * wrong[..., -1])
    close(data.error_by_point, SURE * wrong.mean(1))
    if make is copier:
        assert data.loop[data.accuracy == 1].values.tolist() == [4]
    else:
        assert (data.accuracy.diff("loop") >= 0).all()
        assert data.accuracy[0] < data.accuracy[3] == 1


@BOTH
def test_states_rest_when_nothing_more_comes_in_and_only_the_copier_keeps_a_push_in_its_first_token(make):
    prompts, data = found(make, "converge")
    rest = at_rest(make, prompts[:2])
    assert all((data[limit] == Limit.FIXED).all() for limit in ("limit", "prediction_limit"))
    close(data.state_settled, rest)
    close(data.prediction_settled, rest[:, prompts.read_at])
    close(data.spectral_radius, [float(make is copier)] + [0] * (prompts.n_tokens - 1))


@BOTH
def test_a_rule_of_exit_stops_at_the_first_answer_that_stays(make):
    prompts, data = found(make, "exit")
    read = read_by(make, prompts, 8)[..., -1].numpy()
    for i, (rule, setting) in enumerate(zip(data.rule.values, data.setting.values, strict=True)):
        times = int(setting) if rule == "same answer" else 1
        stops = [next((t + 1 for t in range(times, 8) if len({*one[t - times : t + 1]}) == 1), 8) for one in read.T]
        assert data.loops_used[i].values.tolist() == stops
        close(data.error[i], SURE * (read[np.array(stops) - 1, range(64)] != prompts.answers[:, -1].numpy()))
    close(data.budget_mean, SURE * (~right(make, prompts, 8))[..., -1].mean(1))


@BOTH
def test_a_length_needs_as_many_loops_as_the_algorithm(make):
    _, data = found(make, "extrapolate")
    for length in range(1, 9):
        solved = right(make, make().held_out(64, length=length), 16).all(-1)
        assert np.array_equal(data.right.sel(length=length), solved)
        assert data.needed_loops.sel(length=length) == 1 + (solved.mean(1) >= 0.9).argmax()
    assert data.attrs["fails_at"] == 0
    if make is copier:
        for name in ("needed_loops", "best_loops", "trained_loops"):
            assert (data[name] == data.length).all()
        assert np.array_equal(data.exact == 1, data.length == data.loop)
        assert data.attrs["slope"] == pytest.approx(1)


@BOTH
@pytest.mark.parametrize("mode", ["first", "last"])
@pytest.mark.parametrize("invert", [False, True])
def test_a_mask_costs_what_the_masked_tokens_held(make, mode, invert):
    checkpoint = make()
    prompts = checkpoint.held_out(64)
    counts = tuple(range(prompts.n_tokens + 1))
    data = probe("mask", checkpoint, prompts, mode=mode, n=counts, loops=6, invert=invert)
    for n in counts:
        wrong = ~right(make, prompts, 6, kept=kept_tokens(mode, n, prompts.n_tokens, unit="token", invert=invert))
        close(data.error.sel(n=n), SURE * wrong[..., -1])
        close(data.error_by_point.sel(n=n), SURE * wrong.mean(1))
    if make is copier and not invert:  # the three tokens between the last symbol and the query hold it in turn
        after, enough = data["mean"].sel(loop=4).values, {"first": 8, "last": 4}[mode]
        assert after[:enough].min() > 10
        close(after[enough:], 0)


def test_patches_of_the_copier_matter_on_the_way_of_the_last_symbol_alone():
    _, data = found(copier, "patch")
    before, after = np.eye(4, 9, 4), np.eye(4, 9, 5)  # a token further in each loop
    for ending in ("", "_attribution"):
        close(data[f"z_pre{ending}"], before)
        close(data[f"z{ending}"], after)
        close(data[f"v{ending}"][:, 0], np.stack([before, 0 * before], 1))  # of the two heads
        close(data[f"attn_z{ending}"][:, 0], np.stack([after, 0 * after], 1))
        close(data[f"q{ending}"], 0)
        close(data[f"k{ending}"], 0)


def test_patches_of_the_carrier_matter_where_the_carry_stands():
    checkpoint = carrier()
    task = checkpoint.config.task
    clean, corrupted = (torch.tensor([[5, first, 1, 2, 1, 4]]) for first in (3, 0))  # a carry that goes all the way
    clean, corrupted = (TokenPrompts(tokens, task.rules.solve(tokens), task) for tokens in (clean, corrupted))
    data = probe("patch", checkpoint, clean, corrupted=corrupted, sites=("z", "attn_z", "mlp_out"))
    way, end = np.eye(4, 6, 2), np.arange(1, 5)[:, None] == 4
    close(data.z, way)
    close(data.attn_z.sel(layer=0, head=0), way)
    close(data.attn_z.sel(layer=1), 0)
    close(data.mlp_out, np.stack([way, way * end], 1))


@BOTH
def test_the_lens_reads_the_answers_of_the_loop_and_at_its_input_those_of_the_loop_before(make):
    prompts, data = found(make, "lens")
    last = data.sel(site=data.site.values[-1])
    shares, read = right(make, prompts, 4).mean(1), read_by(make, prompts, 4)
    for lens in ("final norm", "no norm"):
        close(last.accuracy.sel(lens=lens), shares)
        close(data.accuracy.sel(lens=lens, site="input")[1:], shares[:-1])
    others = (read != read[-1]).float().mean(1)
    close(last.to_final.sel(lens="final norm"), SURE * others, 1e-3)
    assert np.array_equal(last["rank"].sel(lens="final norm") > 0, others > 0)
    tuned = last.accuracy.sel(lens="tuned")
    close(tuned[-1], 1)
    assert make is carrier or tuned[:-1].max() < 0.4


def test_the_copied_answer_is_decoded_in_its_loop_alone():
    _, data = found(copier, "decode")
    known = data.accuracy.sel(target="answer", control="none", layer=0)[:, 5:]
    close(known.sel(loop=4), 1)
    assert known.drop_sel(loop=4).max() < 0.4
    assert data.accuracy.sel(control="shuffled").max() < 0.4


def test_a_carry_is_decoded_where_its_chain_is_through():
    prompts, data = found(carrier, "decode")
    through = chains(prompts).T[1:] <= torch.arange(1, 7)[:, None, None]  # loop, position, prompt
    for target, layer in (("carry", 0), ("carry", 1), ("digit", 1)):
        there = data.right.sel(control="none", target=target, layer=layer)[:, 1:]
        assert np.array_equal(there, through), (target, layer)
    assert (data.accuracy.sel(control="shuffled") - data.chance)[..., 1:].max() < 0.1


@BOTH
def test_one_head_looks_at_the_token_before_and_one_at_itself(make):
    prompts, data = found(make, "attention")
    first, own = data.sel(layer=0), np.eye(prompts.n_tokens)
    close(first.mass.sel(target="token before"), [1, 0])
    close(first.mass.sel(target="itself"), [0, 1])
    close(first.pattern, np.stack([own[[0, *range(prompts.n_tokens - 1)]], own]))
    close(first.mixing_score, 0)
    close(data.change[1:], 0)
    close(data.distance, 0)
    close(data.mixing_score[:, 1:], 1)  # the second layer of the carrier has no attention


def test_the_carrier_has_one_fixed_point_where_its_map_is_flat():
    _, data = found(carrier, "fixed_points")
    assert (data.status == "FOUND").all()
    assert (data.distinct == 1).all()
    assert (data.limit_is_fixed & ~data.moves).all()
    for flat in (data.error, data.eigenvalue_real, data.eigenvalue_imag, data.singular_value):
        close(flat, 0)
    assert data.lyapunov.max() < -10


def test_the_copier_has_a_fixed_point_for_whatever_its_first_token_holds():
    _, data = found(copier, "fixed_points")
    assert ((data.distinct == 3) & data.limit_is_fixed).all()  # each start has its own
    close(data.eigenvalue_real[:, :9], 1)  # ten symbols, less the mean
    assert (data.eigenvalue_position[:, :9] == 0).all()
    close(data.lyapunov, 0, 0.1)


def test_a_push_of_the_copier_moves_a_place_a_loop_and_leaves_at_the_end():
    prompts, data = found(copier, "recover")
    for token in (1, 3, 8):
        pushed, way = data.sel(position=token, size=1.0), prompts.query - token
        assert np.array_equal(pushed.prediction_moved > 1e-5, data.after == way)
        assert (pushed.distance[: way + 1] > 0.05).all()
        close(pushed.distance[way + 1 :], 0)
    assert (data.distance.sel(position=-1, size=1.0) > 0.05).all()  # the first token keeps its push


def test_the_carrier_forgets_a_small_push_at_once_and_a_large_one_after_as_many_loops_as_tokens():
    prompts, data = found(carrier, "recover")
    close(data.distance.sel(size=0.1)[:, 1:], 0)
    close(data.prediction_moved.sel(size=0.1)[:, 1:], 0)
    assert data.distance.sel(size=1.0)[:, 1].max() > 0.05
    close(data.distance[..., prompts.n_tokens :], 0)


def test_a_push_comes_after_the_loops_that_prompts_of_its_length_are_given():
    checkpoint = copier()
    for length in (2, 7):
        data = probe("recover", checkpoint, checkpoint.held_out(2, length=length), loops=1)
        assert data.attrs["pushed_after"] == length


@BOTH
def test_paths_end_where_nothing_more_comes_in(make):
    prompts, data = found(make, "paths")
    assert (data.layer_limit == Limit.FIXED).all()
    for (prompt, token), loops in np.ndenumerate(at_rest(make, prompts)[:, data.position]):
        away = abs(data.path - data.path[:, :, -1])[prompt, token].max("component")
        close(away[loops - 1 :], 0)
        assert (away[: loops - 1] > 0.1).all()
    spread = (data.path**2).sum(("followed", "position", "loop"))
    close(spread / spread.sum(), data.explained / data.explained.sum())


@BOTH
@pytest.mark.parametrize("name", OPTIONS)
def test_what_a_probe_finds_is_drawn_and_tabled(make, name):
    _, data = found(make, name)
    assert all(drawn.data for drawn in [figure(data), *figures([data]).values()])
    assert all(made.row_count for made in [table(data), *tables_for([data])])


def test_what_wrote_the_answer_adds_up_to_it():
    data = probe("attribute", copier(), 4)
    written = data.contribution.sum(("loop", "component")) + data.initial + data.offset
    close(written, data.prediction)
    close(data.contribution.sel(component=["MLP 0", "attention offset 0"]), 0)
    assert (data.contribution.sel(loop=4, component="head 0.0") > 18).all(), "the head that moves content"


@pytest.mark.parametrize("name", ["align", "compare", "folds", "shift"])
def test_probes_of_labelled_points_refuse_tokens(name):
    with pytest.raises(LoopprobeError, match="labelled points"):
        probe(name, copier(), 2)
