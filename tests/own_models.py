"""A looped module with random weights and its task, as a user's file has it; run by its name, not imported."""

from dataclasses import dataclass

import torch
from torch import nn

import loopprobe
from loopprobe import TokenTask


@dataclass
class RunningSum(TokenTask):
    """The sum of the digits so far, modulo 3."""

    inputs = "012"
    length: int = 5

    def draw(self, n_prompts, length, generator):
        digits = torch.randint(3, (n_prompts, length), generator=generator)
        return digits, digits.cumsum(1) % 3


class Loop(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.n_loops = 4
        self.embed, self.out = nn.Embedding(3, width), nn.Linear(width, 3)
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, tokens):
        e = self.embed(tokens)
        z = torch.zeros_like(e)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for _ in range(self.n_loops):
            z = self.layer(z + e, src_mask=mask, is_causal=True)
        return self.out(z)


def unseeded():
    model = loopprobe.wrap(
        Loop().eval(), core="layer", prelude="embed", head="out", set_loops="n_loops",
        example=torch.tensor([[0, 1, 2, 2, 1]]),
    )  # fmt: skip
    return loopprobe.with_task(model, RunningSum, name="loop")


def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unseeded()


made = seeded()


def without_task():
    return made.model


def broken():
    raise ValueError("no such weights")
