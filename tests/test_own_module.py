"""A looped module of one's own, with its task, under every probe: heads that stand side by side, and refusals."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import loopprobe
from loopprobe import TokenTask, probe, wrap
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, zero
from loopprobe.probes.dataset import read_stamp
from loopprobe.store.own import OwnModel, with_task
from loopprobe.store.subject import PromptSpec, Subject

WIDTH, HEADS, DIGITS = 12, 3, 3


@dataclasses.dataclass
class RunningSum(TokenTask):
    """The sum of the digits so far, modulo 3."""

    inputs = "012"
    length: int = 5

    def draw(self, n_prompts, length, generator):
        tokens = torch.randint(DIGITS, (n_prompts, length), generator=generator)
        return tokens, tokens.cumsum(1) % DIGITS


class Attention(nn.Module):
    def __init__(self, kv_heads=HEADS):
        super().__init__()
        self.kv_heads, d = kv_heads, WIDTH // HEADS
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, kv_heads * d), nn.Linear(WIDTH, kv_heads * d)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.without = None  # a head

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(HEADS // self.kv_heads, 1) for part in (k, v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.without is not None:
            z = z * (torch.arange(HEADS) != self.without)[:, None, None]
        return self.proj(z.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, kv_heads):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), Attention(kv_heads), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Own(nn.Module):
    """A block that is applied n times to its state plus the input; a norm stands behind the loop."""

    def __init__(self, kv_heads=HEADS, answers=DIGITS):
        super().__init__()
        torch.manual_seed(0)
        self.n = 4
        self.embed, self.layer = nn.Embedding(DIGITS, WIDTH), Layer(kv_heads)
        self.mix, self.norm, self.out = nn.Linear(2 * WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, answers)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.eval()

    def forward(self, tokens, head_at=None):
        e = self.embed(tokens)
        z = torch.zeros_like(e)
        for loop in range(self.n):
            self.layer.attn.without = head_at[1] if head_at and head_at[0] == loop else None
            z = self.layer(z + e)
        self.layer.attn.without = None
        return self.out(self.norm(z))


SITES = {"hook_attn_out": "attn", "hook_mlp_out": "mlp", "attn.hook_z": ("attn.proj", "in"), "attn.hook_k": "attn.k"}


def wrapped(module=None, **told):
    usual = {"core": "layer", "coda": "norm", "head": "out", "prelude": "embed", "set_loops": "n", "n_heads": HEADS,
             "sites": SITES, "example": torch.tensor([[0, 1, 2, 2, 1], [2, 2, 0, 1, 0]])}  # fmt: skip
    return wrap(module or Own(), **usual | told)


@pytest.fixture(scope="module")
def subject():
    return with_task(wrapped(), RunningSum)


def test_heads_that_stand_side_by_side_are_heads(subject):
    model, tokens = subject.model, subject.held_out(6).inputs[0]
    _, cache = model.run_with_cache(tokens, names=["attn_z", "k"])
    assert cache[1, "attn_z", 0].shape == cache[1, "k", 0].shape == (6, 5, HEADS, WIDTH // HEADS)
    for loop, head in ((0, 0), (2, 1), (3, 2)):
        with edited(model, "attn_z", zero, loops=[loop], heads=[head]):
            found = model(tokens, keep_loops=1)[0]
        expected = model.module(tokens, head_at=(loop, head))
        torch.testing.assert_close(found, expected)
        assert (found - model.module(tokens)).abs().max() > 1e-3


def test_ablating_heads_costs_what_it_costs_by_hand(subject):
    prompts = subject.held_out(20)
    data = probe("ablate", subject, prompts, sites=("attn_z",), methods=("zero",), agreement=False, loops=4)
    before = prompts.errors(subject.model.module(prompts.inputs[0])[:, prompts.read_at])[:, -1]
    for loop in range(4):
        for head in range(HEADS):
            answers = subject.model.module(prompts.inputs[0], head_at=(loop, head))
            moved = prompts.errors(answers[:, prompts.read_at])[:, -1] - before
            at = data.sel(component=f"head 0.{head}", loop=loop + 1, replaced_by="zero")
            np.testing.assert_allclose(at.effect.squeeze(), moved.detach(), atol=1e-5)


OPTIONS = {
    "converge": {"loops": 6, "states": 0}, "lens": {"train_prompts": 30}, "mask": {"n": (2,), "loops": 4},
    "patch": {"loops": 2}, "recover": {"loops": 2}, "exit": {"loops": 5},
    "ablate": {"loops": 2, "methods": ("zero",), "sites": ("attn_z", "mlp_out")},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_probes_take_it_as_they_take_a_checkpoint(subject, name):
    data = probe(name, subject, 12, **OPTIONS[name])
    assert read_stamp(data).checkpoint == "Own"
    assert loopprobe.figure(data).data


def test_it_is_a_subject_with_prompts_of_its_task(subject):
    assert isinstance(subject, Subject)
    assert isinstance(subject, OwnModel)
    prompts = subject.draw(PromptSpec(prompts=7, seed=3))
    assert torch.equal(prompts.inputs[0], subject.held_out(7, 3).inputs[0])
    assert torch.equal(prompts.answers, prompts.inputs[0].cumsum(1) % DIGITS)
    assert subject.is_of_task(prompts)
    assert subject.more_like(prompts, 4, 9).n_tokens == prompts.n_tokens
    assert subject.loops_of(prompts) == 4
    other = with_task(wrapped(Own()), RunningSum, name="runs/mine")
    assert (other.label, other.digest) == ("mine", subject.digest)
    with torch.no_grad():
        other.model.module.out.bias += 1
    assert with_task(other.model, RunningSum).digest != subject.digest
    assert repr(subject).startswith("Own: RunningSum, 1 layer in the loop, b = 4")
    assert subject.identity()["config"]["task"]["name"] == "RunningSum"


def test_a_module_of_regression_is_given_the_sizes_of_its_prompts():
    from loopprobe import load

    class Around(nn.Module):
        """A module that another looped model stands in, as one of somebody's own would."""

        def __init__(self):
            super().__init__()
            self.n, self.inner = 5, load("lr-b5-T5")
            self.embed, self.block, self.out = Embedding(self.inner), Block(self.inner), Out(self.inner)

        def forward(self, xs, ys):
            e = self.embed(xs, ys)
            z = torch.zeros_like(e)
            for _ in range(self.n):
                z = self.block(z, e)
            return self.out(z)

    class Part(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = [inner]

    class Embedding(Part):
        def forward(self, xs, ys):
            return self.inner[0].embed(xs, ys)

    class Block(Part):
        def forward(self, z, e):
            return self.inner[0].step(z, e)

    class Out(Part):
        def forward(self, z):
            return self.inner[0].unembed(z)  # at every token; the task says which are read

    checkpoint = loopprobe.load_checkpoint("lr-b5-T5")
    prompts = checkpoint.held_out(6)
    model = wrap(Around().eval(), core="block", prelude="embed", set_loops="n", head="out", example=tuple(prompts))
    with pytest.raises(LoopprobeError, match="n_points= and n_dims="):
        with_task(model, "linear_regression")
    subject = with_task(model, "linear_regression", n_points=31, n_dims=10)
    torch.testing.assert_close(subject.held_out(6).xs, prompts.xs)
    ours = probe("mask", subject, 6, n=(5, 20), loops=8)
    theirs = probe("mask", checkpoint, 6, n=(5, 20), loops=8)
    np.testing.assert_allclose(ours.error, theirs.error, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_said_in_one_line(subject):
    def refused(match, make):
        with pytest.raises(LoopprobeError, match=match) as error:
            make()
        assert "\n" not in str(error.value)

    refused("n_heads=", lambda: wrapped(n_heads=5))
    refused("attn.hook_k has 4 numbers", lambda: wrapped(Own(kv_heads=1)))
    refused("call it 'hook_mlp_out'", lambda: wrapped(sites={"mlp_out": "mlp"}))
    refused("call it 'attn.hook_z'", lambda: wrapped(sites={"attn.z": ("attn.proj", "in")}))
    refused("must come from loopprobe.wrap", lambda: with_task(Own(), RunningSum))
    refused("no task is called", lambda: with_task(subject.model, "running sums"))
    refused("not in the vocabulary", lambda: with_task(subject.model, "s5"))
    refused("RunningSum", lambda: with_task(wrapped(Own(answers=2)), RunningSum))
    refused("has no task", lambda: probe("converge", subject.model))
    refused("has no task", lambda: probe("converge", Own()))
    refused(r"prompts \(Tensor\)", lambda: probe("converge", subject, torch.zeros(2, 5).long()))
    refused(r"prompts \(tuple\)", lambda: probe("converge", subject, (1, 2)))
    refused("reads no text", lambda: subject.draw(PromptSpec(text=("a b",))))
    refused("data", lambda: subject.draw(PromptSpec(data="iris")))
    refused("no shift", lambda: subject.held_out(3, shift="noise"))


class Positions(nn.Module):
    """An embedding of tokens that has places for six."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(DIGITS, WIDTH), nn.Embedding(6, WIDTH)

    def forward(self, tokens):
        return self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))


def test_prompts_longer_than_the_module_reads_are_refused_in_one_line():
    module = Own()
    module.embed = Positions()
    short = with_task(wrapped(module), RunningSum)
    assert short.held_out(3, length=6).n_tokens == 6
    for ask in (lambda: short.held_out(3, length=7), lambda: short.draw(PromptSpec(prompts=3, length=7))):
        with pytest.raises(LoopprobeError, match=r"of shape \[1, 7\] .*of a length that it reads") as error:
            ask()
        assert "\n" not in str(error.value)
