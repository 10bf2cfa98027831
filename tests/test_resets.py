"""Tokens that are reset before a loop: what is left out of their iteration changes nothing of what is read."""

import numpy as np
import pytest
import torch
from conftest import make_model
from test_token_model import TOKENS, VARIANTS, make

from loopprobe.model import blocks
from loopprobe.model.reading import at_tokens
from loopprobe.probes import mask as probe
from loopprobe.probes.mask_runs import entering
from loopprobe.tasks import held_out

LOOP = 1
OTHERS = ["both ways", "around", "all"]  # variants whose attention is not causal, or that have a coda


def step_of_a_mask(model, inputs, start, only):
    """The next states of the tokens read, of an iteration that begins with the tokens from ``start`` on reset."""
    with torch.no_grad():
        _, cache = model.run_with_cache(*inputs, LOOP + 1)
        e, z = cache["hook_embed"], cache[LOOP, "z_pre"]
        value = torch.randn(e.shape, generator=torch.Generator().manual_seed(0), dtype=e.dtype)
        past = [(cache[LOOP, "k", i][:, :start], cache[LOOP, "v", i][:, :start]) for i in range(model.cfg.n_layers)]
        state = torch.cat([z[:, :start], value[:, start:]], 1)
        whole = model.step(state, e, LOOP)[:, start:]
        read = at_tokens(only, start, e.shape[1] - start)
        x, heads = entering(model, value, e, LOOP)
        return model.run_layers(x[:, start:], LOOP, past, tuple(part[:, start:] for part in heads), read), whole[
            :, read
        ]


def test_most_variants_step_behind_known_keys():
    assert [name for name, fields in VARIANTS.items() if "past" not in make(**fields).supports] == OTHERS


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in OTHERS])
@pytest.mark.parametrize("short", [0, blocks.SHORT])
@pytest.mark.parametrize("only", [slice(0, None), slice(0, None, 2), [1, 4], [0]])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_states_that_are_read_are_those_of_a_step_of_all_tokens(variant, short, only, start, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    model = make(**VARIANTS[variant])
    short_cut, whole = step_of_a_mask(model, (TOKENS,), start, only)
    torch.testing.assert_close(short_cut, whole, atol=1e-11, rtol=0)


@pytest.mark.parametrize("short", [0, blocks.SHORT])
@pytest.mark.parametrize("n_layers", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 3, 8, 11])
def test_states_that_are_read_are_those_of_a_step_of_vectors(n_layers, start, short, prompts, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    model = make_model(n_layers=n_layers)
    short_cut, whole = step_of_a_mask(model, (prompts.xs, prompts.ys), start, slice(0, None, 2))
    torch.testing.assert_close(short_cut, whole, atol=1e-11, rtol=0)


@pytest.mark.parametrize("mode", ["first", "last"])
def test_a_hook_of_the_users_sees_every_token_under_every_mask(mode, checkpoint):
    batch = held_out(checkpoint.config.task, 5, 6, 3)
    model, seen = checkpoint.model, set()
    assert "past" in model.supports

    def silence_the_eighth(z, hook):
        seen.add(z.shape[1])
        z = z.clone()
        z[:, 7] = 0
        return z

    plain = probe.run(checkpoint, batch, probe.MaskConfig(mode=mode, n=(1, 4), loops=3))
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", silence_the_eighth)]):
        assert "past" not in model.supports
        data = probe.run(checkpoint, batch, probe.MaskConfig(mode=mode, n=(1, 4), loops=3))
    assert seen == {12}
    point = 7 // 2  # of the eighth token, a label: later answers alone attend to it
    before, after = slice(0, point + 1), slice(point + 1, None)
    np.testing.assert_allclose(
        data.error_by_point.isel(loop=0, point=before), plain.error_by_point.isel(loop=0, point=before), rtol=1e-5
    )
    hooked = data.error_by_point.isel(loop=-1, point=after)
    assert not np.isclose(hooked, plain.error_by_point.isel(loop=-1, point=after)).any()
