"""Direct effects are those of computations by hand, and hand-built models have the edges that they were built with."""

import numpy as np
import pytest
import torch
from conftest import make_model
from hand_built import LINEAR, copier
from other_model import OtherSubject, draw

from loopprobe import probe
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited
from loopprobe.probes import edges, patch
from loopprobe.probes.ablate_runs import Component
from loopprobe.probes.edge_runs import Edge, EdgeRuns
from loopprobe.probes.measures import find_measure
from loopprobe.store.checkpoint import Checkpoint

LOOPS = 3


@pytest.fixture
def double(checkpoint):
    return Checkpoint(checkpoint.config, make_model(), name="runs/tiny")


def pair(subject, n=4):
    prompts = subject.held_out(n)
    prompts = prompts.to(torch.float64) if prompts.inputs[0].is_floating_point() else prompts
    return prompts, patch.corrupted_prompts(subject, prompts, patch.PatchConfig())


def runs_of(subject, steps=1):
    prompts, other = pair(subject)
    return EdgeRuns(subject.model, prompts, other, LOOPS, find_measure("answer", prompts), steps), prompts, other


def stream_by_hand(model, clean, wrong, e, wrong_e, sender, from_loop, to_loop, to_layer):
    """The residual stream before the attention of a layer, every output clean but for one, in plain torch."""
    z = torch.zeros_like(e)
    for loop in range(to_loop + 1):
        now_wrong = sender is None and loop == from_loop
        x = z + (wrong_e if now_wrong else e) + model.W_pos[: e.shape[1]]
        for layer, block in enumerate(model.blocks):
            if loop == to_loop and layer == to_layer:
                return x
            heads = clean[loop, "attn_z", layer].clone()
            mlp = clean[loop, "mlp_out", layer]
            if sender is not None and (loop, layer) == (from_loop, sender.layer):
                if sender.head is None:
                    mlp = wrong[loop, "mlp_out", layer]
                else:
                    heads[:, :, sender.head] = wrong[loop, "attn_z", layer][:, :, sender.head]
            x = x + heads.flatten(-2) @ block.attn.out.weight.T + block.attn.out.bias + mlp
        z = torch.nn.functional.layer_norm(x, x.shape[-1:], model.ln_final.weight, model.ln_final.bias, model.cfg.eps)
    return z


@pytest.mark.parametrize("sender", [None, Component("attn_z", 0, 1), Component("mlp_out", 1)], ids=str)
def test_exact_direct_effects_are_those_of_a_computation_by_hand(sender, double):
    runs, prompts, other = runs_of(double)
    model = double.model
    names = ["attn_z", "mlp_out", "embed"]
    (_, clean), (_, wrong) = (model.run_with_cache(*one, n_loops=LOOPS, names=names) for one in (prompts, other))
    args = model, clean, wrong, clean["hook_embed"], wrong["hook_embed"], sender, 0
    receivers = {"q": Component("q", 1, 0), "v": Component("v", 1, 1)}
    with torch.no_grad():
        before = model(*prompts, LOOPS)[-1, :, -1]
        state = stream_by_hand(*args, LOOPS - 1, None)
        found = runs.exact([Edge(0, sender, LOOPS - 1, None)])[0]
        torch.testing.assert_close(found, (state[:, 10] @ model.W_U + model.b_U)[:, 0] - before)
        for part, receiver in receivers.items():
            for to_loop in (1, 2):
                block = model.blocks[1]
                x = block.ln1(stream_by_hand(*args, to_loop, 1))
                told = (
                    x @ getattr(block.attn, f"W_{part.upper()}")[receiver.head]
                    + getattr(block.attn, f"b_{part.upper()}")[receiver.head]
                )

                def instead(x, hook, told=told, head=receiver.head):
                    x = x.clone()
                    x[:, :, head] = told
                    return x

                with edited(model, part, instead, loops=[to_loop], layers=[1]):
                    expected = model(*prompts, LOOPS)[-1, :, -1] - before
                torch.testing.assert_close(runs.exact([Edge(0, sender, to_loop, receiver)])[0], expected)


def test_the_sum_of_direct_effects_on_a_linear_read_out_is_the_total_effect():
    """Where norms are linear, what all parts write adds up, and so do their direct effects on the read-out."""
    subject = copier(eps=LINEAR)
    subject.model.double()
    prompts = subject.held_out(6)
    data = probe("edges", subject, prompts, exact=0, steps=1, measure="logit_difference")
    to_read_out = data.moved.isel(to_loop=-1).sel(receiver="read-out").sum(("from_loop", "sender"))
    np.testing.assert_allclose(to_read_out, data.total, rtol=1e-3, atol=1e-3)
    assert (abs(data.total) > 1).any()


def test_the_hand_built_copier_has_its_edges_and_no_others():
    """The letter that is read goes from value to value, one loop and one place at a time, and no other way.

    Head 1 clears what is left behind, which no prompt's answer sees; queries and keys see places alone.
    """
    subject = copier(eps=LINEAR)
    subject.model.double()
    data = probe("edges", subject, subject.held_out(8), exact=2000, steps=1, measure="logit_difference")
    there = (abs(data.exact) > 1e-6).values
    found = {
        tuple(str(data[dim].values[i]) for dim, i in zip(data.exact.dims, place, strict=True))
        for place in np.argwhere(there)
    }
    chain = {(str(t), "head 0.0", str(t + 1), "head 0.0 v") for t in (1, 2, 3)}
    assert found == {("1", "input", "1", "head 0.0 v"), *chain, ("4", "head 0.0", "4", "read-out")}
    both = data.exact.notnull() & (data.chosen != "read-out")
    np.testing.assert_allclose(data.share.where(both), data.exact.where(both), atol=1e-4)
    assert data.attrs["correlation_largest"] > 0.9999


def test_estimates_are_gradients_times_exact_changes_and_nothing_goes_back(double):
    prompts, other = pair(double)
    data = edges.run(double, prompts, edges.EdgesConfig(loops=LOOPS, steps=1, exact=6))
    assert data.sizes["sender"] == 1 + 2 * 3
    assert data.sizes["receiver"] == 2 * 7 + 1
    share = data.share
    assert share.sel(from_loop=3, to_loop=1).isnull().all()
    assert share.sel(from_loop=1, sender="MLP 0", to_loop=1, receiver="head 0.0 q").isnull()
    assert share.sel(from_loop=1, sender="MLP 0", to_loop=1, receiver="head 1.0 q").notnull()
    assert share.sel(from_loop=1, sender="head 0.0", to_loop=1, receiver="MLP 0").notnull()
    assert share.sel(from_loop=1, sender="MLP 1", to_loop=1).isnull().all()
    assert share.sel(from_loop=1, sender="MLP 1", to_loop=2).drop_sel(receiver="read-out").notnull().all()
    assert share.sel(receiver="read-out", to_loop=3).notnull().all()
    lag = share.drop_sel(receiver="read-out").fillna(0)
    expected = sum(lag.sel(from_loop=t, to_loop=t + 1) for t in (1, 2))
    np.testing.assert_allclose(data.by_lag.sel(lag=1), expected, atol=1e-12)
    assert float(data.similarity.sel(lag=1, from_loop=2)) == pytest.approx(1)
    assert (data.chosen == "largest").sum() == 6
    exact = data.exact.where(data.chosen == "largest")
    index = np.argwhere(exact.notnull().values)[0]
    place = [exact[dim].values[i].item() for dim, i in zip(exact.dims, index, strict=True)]
    runs = EdgeRuns(double.model, prompts, other, LOOPS, find_measure("answer", prompts), 1)
    part, _, kind = place[3].rpartition(" ") if place[3].startswith("head") else (place[3], "", "mlp_out")
    layer, _, head = part.split(" ")[1].partition(".")
    receiver = Component(kind, int(layer), int(head) if head else None)
    names = {name: one for one in edges.senders_of(double.model) for name in [edges.sender_name(one)]}
    moved = runs.exact([Edge(place[0] - 1, names[place[1]], place[2] - 1, receiver)])[0].numpy()
    total = data.total.values
    assert float(exact.values[tuple(index)]) == pytest.approx((moved * total).sum() / (total**2).sum(), rel=1e-4)


def test_more_steps_are_the_mean_of_gradients_on_the_way(double):
    one, prompts, _ = runs_of(double)
    two, *_ = runs_of(double, steps=2)
    e, wrong = one.e, one.corrupted["hook_embed"]
    with edited(double.model, "embed", lambda x, hook: (e + wrong) / 2):
        _, cache = double.model.run_with_cache(
            *prompts, n_loops=LOOPS, names="v", loss=lambda outputs: outputs[-1, :, -1].sum()
        )
    middle = cache.grads.stack("v", 0)
    torch.testing.assert_close(two.slopes["v", 0], (one.slopes["v", 0] + middle) / 2)


def test_the_seam_and_mistakes(checkpoint):
    other = OtherSubject()
    data = probe("edges", other, draw(4), corrupted=draw(4, seed=1), loops=2, exact=3)
    assert data.share.notnull().any()
    for options, message in (
        ({"from_loops": "9"}, "loop 9 must be from 1 and at most 4"),
        ({"corruption": "token"}, r"corruption \(token\) must be weights"),
        ({"measure": "margin"}, "of tokens alone"),
    ):
        with pytest.raises(LoopprobeError, match=message) as error:
            probe("edges", checkpoint, 4, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(LoopprobeError, match="given as corrupted="):
        probe("edges", other, draw(4))
