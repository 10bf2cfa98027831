"""Loops that read their own number: found in every loop that was trained, and named."""

import pytest
import torch
from torch import nn

import loopprobe
from loopprobe.errors import LoopprobeError

WIDTH, TOKENS = 8, 30


class Counting(nn.Module):
    """Its loop adds an embedding of its number, or does something else from one loop on."""

    def __init__(self, n_loops=4, embedded=False, other=None):
        super().__init__()
        torch.manual_seed(0)
        self.n_loops, self.embedded, self.other = n_loops, embedded, other
        self.embed, self.number = nn.Embedding(TOKENS, WIDTH), nn.Embedding(100, WIDTH)
        self.layer, self.norm, self.out = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS)
        self.eval()

    def forward(self, tokens, note=lambda loop, x: x):
        e = self.embed(tokens)
        z = torch.zeros_like(e)
        for loop in range(self.n_loops):
            x = z + e
            if self.embedded:
                x = x + self.number(torch.tensor(loop))
            x = note(loop, self.layer(x))
            z = self.norm(-x if loop == self.other else x + e)
        return self.out(z)


def wrapped(module, **told):
    usual = {"core": "layer", "state": "norm", "prelude": "embed", "head": "out", "set_loops": "n_loops"}
    return loopprobe.wrap(module, **usual | {"example": torch.arange(1, 7)[None]} | told)


@pytest.mark.parametrize(("module", "loop"), [
    (Counting(embedded=True), 2), (Counting(8, other=5), 5), (Counting(8, other=7), 7), (Counting(3, other=2), 2),
])  # fmt: skip
def test_a_loop_that_reads_its_number_is_named(module, loop):
    with pytest.raises(LoopprobeError, match=f"^loop {loop} from the same state.*number of the loop.*state=False$"):
        wrapped(module)
    assert wrapped(module, state=False).supports.isdisjoint({"map"})


def test_more_that_goes_on_is_not_taken_for_a_number():
    class Second(Counting):
        def forward(self, tokens):
            e = self.embed(tokens)
            z = other = torch.zeros_like(e)
            for _ in range(self.n_loops):
                x = self.layer(z + e + other)
                other = other + 0.3 * x
                z = self.norm(x)
            return self.out(z)

    with pytest.raises(LoopprobeError, match="more goes on to the next loop; name all of it"):
        wrapped(Second())


def test_without_a_state_every_loop_is_seen_and_edited_as_it_is():
    module, tokens = Counting(6, embedded=True), torch.randint(TOKENS, (3, 5))
    model = wrapped(module, state=False)
    answers, cache = model.run_with_cache(tokens)
    seen = []
    assert torch.equal(answers[-1], module(tokens, lambda loop, x: seen.append(x) or x))
    for loop in range(6):
        assert torch.equal(cache[loop, "resid_post", 0], seen[loop])
        module.n_loops = loop + 1
        assert torch.equal(answers[loop], module(tokens))
    module.n_loops = 6
    with model.hooks([("loops.4.blocks.0.hook_resid_post", lambda x, hook: 2 * x)]):
        edited = model(tokens, keep_loops=1)[0]
    assert torch.equal(edited, module(tokens, lambda loop, x: x * (1 + (loop == 4))))


def test_a_difference_beyond_the_loops_that_were_trained_is_not_looked_for():
    """What a loop does that no training ran is not part of the model."""
    assert "map" in wrapped(Counting(4, other=5)).supports
