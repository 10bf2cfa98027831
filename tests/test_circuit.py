"""Circuits run as a computation by hand does, and those of hand-built models are found exactly."""

import copy

import numpy as np
import pytest
import torch
from conftest import make_model
from hand_built import LINEAR, copier, rippler
from other_model import OtherSubject, draw

from loopprobe import probe
from loopprobe.config import budget
from loopprobe.errors import LoopprobeError
from loopprobe.probes import circuit, patch
from loopprobe.probes.circuit_overlap import best_order, jaccard, overlaps, reordered
from loopprobe.probes.circuit_runs import CircuitRuns
from loopprobe.probes.measures import find_measure
from loopprobe.show import sentences
from loopprobe.store.checkpoint import Checkpoint

LOOPS = 3


@pytest.fixture
def double(checkpoint):
    return Checkpoint(checkpoint.config, make_model(), name="runs/tiny")


def runs_of(subject, measure="answer", loops=LOOPS):
    prompts = subject.held_out(4)
    prompts = prompts.to(torch.float64) if prompts.inputs[0].is_floating_point() else prompts
    other = patch.corrupted_prompts(subject, prompts, patch.PatchConfig())
    prompts = prompts.against(other)
    return CircuitRuns(subject.model, prompts, other, loops, find_measure(measure, prompts)), prompts, other


def possible_edges(wiring):
    """Every edge of a model with two parts a layer, attention and MLP, in the order in which they are computed."""
    n = wiring.n_loops
    made = np.zeros((n, len(wiring.senders), n, len(wiring.receivers) + 1), bool)
    depth = [-1 if one is None else 2 * one.layer + (one.head is None) for one in wiring.senders]
    into = [2 * one.layer + (one.head is None) for one in wiring.receivers]
    for loop in range(n):
        made[loop, :, loop + 1 :, :-1] = True
        made[loop, :, loop, :-1] = np.array(depth)[:, None] < np.array(into)
        made[loop, :, -1, -1] = True
    return made


class ByHand:
    """The run of a circuit in plain torch: one recursion, from a receiver to the outputs of its senders."""

    def __init__(self, runs, prompts, other, edges):
        self.model, self.wiring, self.edges, self.values = runs.model, runs.wiring, edges, {}
        names = ["attn_z", "mlp_out", "embed"]
        (_, clean), (_, self.wrong) = (
            self.model.run_with_cache(*one, n_loops=LOOPS, names=names) for one in (prompts, other)
        )
        self.clean_e, self.wrong_e = clean["hook_embed"], self.wrong["hook_embed"]

    def written(self, loop, i, to):
        """What comes from a sender to a receiver."""
        sender, current = self.wiring.senders[i], self.edges[(loop, i, *to)]
        if sender is None:
            return self.clean_e if current else self.wrong_e
        if not current:
            return sender.of(self.wrong, loop)
        if (loop, i) not in self.values:
            self.values[loop, i] = self.computed(loop, i)
        return self.values[loop, i]

    def computed(self, loop, i):
        """The output of a component of its own assembled inputs."""
        sender, block = self.wiring.senders[i], self.model.blocks[self.wiring.senders[i].layer]
        streams = [self.stream(loop, receiver) for receiver in self.wiring.inputs[i]]
        if sender.head is None:
            return block.mlp.fc_out(block.mlp.act(block.mlp.fc_in(block.ln2(streams[0]))))
        q, k, v = (
            block.ln1(x) @ getattr(block.attn, f"W_{part}")[sender.head] + getattr(block.attn, f"b_{part}")[sender.head]
            for part, x in zip("QKV", streams, strict=True)
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        return scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf).softmax(-1) @ v

    def stream(self, to_loop, receiver):
        """The residual stream before a receiver, from the first loop on; that of the read-out after the last norm."""
        to = to_loop, receiver
        end = None if receiver == len(self.wiring.receivers) else self.wiring.receivers[receiver]
        z = torch.zeros_like(self.clean_e)
        for loop in range(to_loop + 1):
            x = z + self.written(loop, 0, to) + self.model.W_pos[: z.shape[1]]
            for layer, block in enumerate(self.model.blocks):
                last = end is not None and loop == to_loop and layer == end.layer
                if last and end.head is not None:
                    return x
                own = [i for i, one in enumerate(self.wiring.senders) if one is not None and one.layer == layer]
                for i in own[:-1]:
                    x = x + self.written(loop, i, to) @ block.attn.W_O[self.wiring.senders[i].head]
                x = x + block.attn.out.bias
                if last:
                    return x
                x = x + self.written(loop, own[-1], to)
            z = self.model.ln_final(x)
        return z

    def answers(self):
        z = self.stream(LOOPS - 1, len(self.wiring.receivers))
        return (z[:, 10] @ self.model.W_U + self.model.b_U)[:, 0]


@pytest.mark.parametrize(("share", "seed"), [(0.02, 0), (0.2, 1), (0.5, 2), (0.9, 3)])
def test_a_circuit_runs_as_by_hand(share, seed, double):
    runs, prompts, other = runs_of(double)
    edges = possible_edges(runs.wiring) & (np.random.default_rng(seed).random(possible_shape(runs)) < share)
    edges[-1, 3:, -1, -1] = possible_edges(runs.wiring)[-1, 3:, -1, -1]  # some way to the read-out
    with torch.no_grad():
        expected = ByHand(runs, prompts, other, edges).answers()
    torch.testing.assert_close(runs.moved(edges), expected - runs.before)
    assert runs.moved(edges).abs().min() > 1e-4


def possible_shape(runs):
    return possible_edges(runs.wiring).shape


@pytest.mark.parametrize("make", ["double", "copier"])
def test_no_edge_is_the_corrupted_run_and_all_edges_are_the_clean_one(make, double):
    subject = double if make == "double" else copier()
    runs, *_ = runs_of(subject, "answer") if make == "double" else runs_of(subject, "logit_difference", loops=4)
    edges = possible_edges(runs.wiring)
    torch.testing.assert_close(runs.moved(edges & False), runs.total)
    torch.testing.assert_close(runs.moved(edges), torch.zeros_like(runs.total), atol=1e-4, rtol=0)
    assert runs.total.abs().max() > 1e-2


def test_prompts_in_parts_are_the_same(double, monkeypatch):
    runs, *_ = runs_of(double)
    edges = possible_edges(runs.wiring) & (np.random.default_rng(0).random(possible_shape(runs)) < 0.6)
    whole = runs.moved(edges)
    monkeypatch.setattr("loopprobe.probes.circuit_runs.TOKENS_AT_ONCE", 1)
    torch.testing.assert_close(runs.moved(edges), whole)


def test_edges_that_lead_nowhere_are_left_out(double):
    wiring = runs_of(double)[0].wiring
    names = [str(one and one.name) for one in wiring.senders]
    edges = possible_edges(wiring) & False
    mlp, head, read_out = names.index("MLP 1"), names.index("head 0.1"), -1
    value = wiring.inputs[head][2]
    edges[1, mlp, -1, read_out] = True  # nothing comes to it
    edges[0, 0, 1, value] = True  # leads nowhere
    assert not wiring.pruned(edges).any()
    edges[1, head, 1, wiring.inputs[mlp][0]] = True
    assert wiring.pruned(edges).sum() == 3
    edges[1, head, 1, wiring.inputs[mlp][0]] = False
    edges[1, head, -1, read_out] = True
    assert wiring.pruned(edges).sum() == 2


def edges_of(data, name="circuit"):
    return {
        tuple(str(data[dim].values[i]) for dim, i in zip(data[name].dims, place, strict=True))
        for place in np.argwhere(data[name].values)
    }


def test_the_circuit_of_the_hand_built_copier_is_found():
    subject = copier(eps=LINEAR)
    subject.model.double()
    data = probe("circuit", subject, 16, exact=2000, steps=1, keep=1, measure="logit_difference", random=1)
    chain = {(str(t), "head 0.0", str(t + 1), "head 0.0 v") for t in (1, 2, 3)}
    assert edges_of(data) == {("1", "input", "1", "head 0.0 v"), *chain, ("4", "head 0.0", "4", "read-out")}


@pytest.mark.parametrize("halves", [False, True])
def test_the_carry_of_the_hand_built_adder_is_found(halves):
    """Loop t reads column t and the carry into it, and writes the carry out of it, which is read one loop later."""
    subject = rippler()
    subject.model.double()
    prompts = subject.held_out(48)
    right = subject.model(*prompts.inputs)[-1, :, -1].argmax(-1)
    assert torch.equal(right, prompts.answers[:, -1]), "it does add"
    options = {"corruption": "prompt", "measure": "logit_difference", "steps": 1, "random": 1, "exact": 500}
    data = probe("circuit", subject, prompts, keep=1, halves=halves, **options)
    true = {("4", "MLP 0", "4", "read-out")}
    for t in range(1, 5):
        true |= {(str(t), "input", str(t), "head 0.0 v"), (str(t), "head 0.0", str(t), "MLP 0")}
        true |= {(str(t), "MLP 0", str(t + 1), "head 0.0 v")} if t < 4 else set()
    assert edges_of(data) == true
    assert data.attrs["found"] == len(true) == 12
    assert int((abs(data.exact) > 1e-6).sum()) == 12, "no other edge has an effect"
    kept = data.kept.sel(set="ranked")
    np.testing.assert_allclose(kept.sel(edges=slice(12, None)), 1, atol=1e-6)
    assert (kept.sel(edges=slice(None, 11)) < 0.95).all()
    assert float(data.left.sel(set="ranked", edges=12)) == pytest.approx(0, abs=1e-6)
    assert "wide" not in sentences.circuit(data)
    wide = data.assign(kept_low=data.kept - 0.3, kept_high=data.kept + 0.2)
    assert sentences.circuit(wide).endswith("The interval of what they keep is wide: give more prompts.")
    assert float(data.kept.sel(set="random", edges=12)) == pytest.approx(0, abs=1e-6)
    assert set(np.flatnonzero(abs(data.by_lag).sum(("sender", "lag_receiver")).values > 0)) == {0, 1}
    if halves:
        assert edges_of(data, "other_circuit") == true
        one = overlaps([data]).isel(pair=0)
        assert (float(one.overlap), float(one.overlap_low), float(one.overlap_high)) == (1, 1, 1)
        assert float(one.expected) < 0.1


def test_curves_are_shares_on_prompts_that_did_not_choose(double):
    prompts = double.held_out(9).to(torch.float64)
    data = circuit.run(double, prompts, circuit.CircuitConfig(loops=LOOPS, steps=1, random=2, per_decade=1))
    assert (data.sizes["example"], data.sizes["measured"]) == (4, 5)
    total = data.measured_total
    for name in ("kept", "left"):
        expected = 1 - (data[f"{name}_moved"] * total).sum("measured") / (total**2).sum()
        np.testing.assert_allclose(data[name], expected, atol=1e-6)
        assert (data[f"{name}_low"] <= data[name] + 1e-9).all()
        assert (data[f"{name}_high"] >= data[name] - 1e-9).all()
    last = {"edges": data.attrs["possible"]}
    assert data.attrs["possible"] == possible_edges(runs_of(double)[0].wiring).sum()
    np.testing.assert_allclose([data.kept.sel(last), data.left.sel(last) + 1], 1, atol=1e-6)
    assert abs(1 - data.attrs["kept_when_chosen"]) <= 0.1 + circuit.NEARLY
    off = (data.kept_moved.sel(set="ranked") ** 2).sum("measured") / (total**2).sum()
    np.testing.assert_allclose(data.unexplained.sel(set="ranked"), off, atol=1e-6)
    order = np.sort(data["rank"].values[data["rank"].notnull().values])
    assert np.array_equal(order, 1 + np.arange(data.attrs["possible"]))
    best = (data["rank"] <= data.attrs["found"]) & (data.circuit == 1)
    assert int(best.sum()) == int(data.circuit.sum()) > 0
    in_first = abs(data.share.where(data["rank"] <= 5)).min()
    assert in_first >= abs(data.share.where(data["rank"] > 5)).max()


@pytest.mark.parametrize("needed", [1, 2, 7, 8, 9, 64, 99, 100])
def test_the_smallest_number_is_found_by_bisection(needed):
    tried = []

    def keeps(k):
        tried.append(k)
        return k >= needed

    assert circuit.smallest(keeps, 100) == needed
    assert len(tried) <= 14
    assert 100 not in tried, "all of them do, which need not be run"


def test_sizes_have_a_hundredth_and_a_tenth_of_all():
    sizes = circuit.sizes_of(3740, 4)
    assert {1, 37, 374, 3740} <= set(sizes)
    assert np.diff(np.log10(sizes[6:])) == pytest.approx(0.25, abs=0.03)
    assert circuit.sizes_of(1, 4).tolist() == [1]


def with_heads(model, order):
    """The same model with the heads of its first layer in another order."""
    model = copy.deepcopy(model)
    attn, n = model.blocks[0].attn, model.sizes.n_heads
    with torch.no_grad():
        for part in (attn.qkv.weight, attn.qkv.bias):
            part.copy_(part.unflatten(0, (3, n, -1))[:, order].flatten(0, 2))
        attn.out.weight.copy_(attn.out.weight.unflatten(1, (n, -1))[:, order].flatten(1))
    return model


def test_heads_of_other_seeds_are_put_in_order(double):
    options = {"loops": 2, "steps": 1, "random": 1, "per_decade": 1}
    prompts = double.held_out(8).to(torch.float64)
    other = Checkpoint(double.config, with_heads(double.model, [1, 0]), name="runs/other")
    torch.testing.assert_close(other.model(*prompts, 2), double.model(*prompts, 2))
    one, two = (probe("circuit", subject, prompts, **options) for subject in (double, other))
    pair = overlaps([one, two]).isel(pair=0)
    assert bool(pair.matched)
    assert float(pair.overlap) == 1
    first, second = one.circuit.values.astype(bool), two.circuit.values.astype(bool)
    assert jaccard(first, second) < 1
    assert np.array_equal(reordered(second, best_order(first, second, one)), first)
    assert float(pair.overlap_low) <= 1
    assert 0 < float(pair.expected) < 1
    longer = probe("circuit", double, prompts, **options | {"loops": 3})
    assert not overlaps([one, longer]).sizes["pair"], "circuits over other loops are not compared"


def test_a_random_overlap_is_that_of_the_hypergeometric_distribution(double):
    prompts = double.held_out(6).to(torch.float64)
    data = probe("circuit", double, prompts, loops=2, steps=1, random=1, per_decade=1, halves=True)
    pair = overlaps([data]).isel(pair=0)
    sizes = int(data.circuit.sum()), int(data.other_circuit.sum())
    both = sizes[0] * sizes[1] / data.attrs["possible"]
    assert float(pair.expected) == pytest.approx(both / (sum(sizes) - both), rel=0.2)
    assert not bool(pair.matched)


def test_the_seam_and_mistakes(checkpoint, monkeypatch):
    other = OtherSubject()
    data = probe("circuit", other, draw(4), corrupted=draw(4, seed=1), loops=2, steps=1, random=1)
    assert np.isfinite(data.kept).any()
    for options, message in (
        ({"keep": 1.5}, r"keep \(1.5\) must be at most 1"),
        ({"corruption": "token"}, r"corruption \(token\) must be weights"),
        ({"measure": "margin"}, "of tokens alone"),
    ):
        with pytest.raises(LoopprobeError, match=message) as error:
            probe("circuit", checkpoint, 4, **options)
        assert "\n" not in str(error.value)
    prompts = checkpoint.held_out(4)
    with pytest.raises(LoopprobeError, match=r"corrupted prompts \(given\) change the answer of no prompt"):
        probe("circuit", checkpoint, prompts, corrupted=prompts)
    with pytest.raises(LoopprobeError, match="one half chooses and the other measures"):
        probe("circuit", checkpoint, 1)
    monkeypatch.setattr(budget, "available", lambda device: 2**20)
    with pytest.raises(LoopprobeError, match="over 4 loops needs"):
        probe("circuit", checkpoint, 4000)
