"""Layers that are handed two tensors of one shape: which of them is the hidden state is found, not assumed."""

import pytest
import torch
from torch import nn

import loopprobe

WIDTH, TOKENS = 8, 30


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, e, x):
        return x + torch.tanh(self.mix(torch.cat([e, x], -1)))


class Injected(nn.Module):
    """Every layer is handed the injected input first, and the hidden state behind it."""

    def __init__(self, n_layers, how):
        super().__init__()
        torch.manual_seed(0)
        self.n_loops, self.how = 3, how
        self.embed, self.out = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS)
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(n_layers)), nn.LayerNorm(WIDTH)
        self.eval()

    def forward(self, tokens, note=lambda loop, layer, x: x):
        e = self.embed(tokens)
        z = torch.zeros_like(e)
        for loop in range(self.n_loops):
            x = z + e if self.how == "added" else z
            for i, layer in enumerate(self.layers):
                x = note(loop, i, x)
                x = layer(e=e, x=x) if self.how == "named" else layer(e, x)
            z = self.norm(x)
        return self.out(z)


@pytest.mark.parametrize("how", ["added", "plain", "named"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_hidden_state_is_what_the_layer_before_returned(n_layers, how):
    module, tokens = Injected(n_layers, how), torch.randint(TOKENS, (3, 5))
    model = loopprobe.wrap(
        module, core="layers", state="norm", prelude="embed", head="out", set_loops="n_loops", example=tokens
    )
    handed = {}
    answers, cache = model.run_with_cache(tokens)
    assert torch.equal(answers[-1], module(tokens, lambda loop, i, x: handed.setdefault((loop, i), x)))
    for (loop, layer), x in handed.items():
        assert torch.equal(cache[loop, "resid_pre", layer], x)
    with model.hooks([(f"loops.1.blocks.{n_layers - 1}.hook_resid_pre", lambda x, hook: 2 * x)]):
        edited = model(tokens, keep_loops=1)[0]
    assert torch.equal(edited, module(tokens, lambda loop, i, x: x * (1 + ((loop, i) == (1, n_layers - 1)))))
    assert not torch.equal(edited, answers[-1])
