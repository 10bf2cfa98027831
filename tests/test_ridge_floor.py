"""A ridge regression of one prompt, or of states that do not vary, still has a map."""

import pytest
import torch

from loopprobe.probes.ridge import Ridge, with_one


def test_one_prompt_is_read_back():
    states = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.ones(2, 1, 3, 1, dtype=torch.float64) * 5
    fit = Ridge(1e-4)
    fit.add(states, {"y": target})
    read = torch.einsum("tbpi,tpij->tbpj", with_one(states), fit.solve()["y"])
    torch.testing.assert_close(read, target, atol=1e-3, rtol=0)


def varying_by(size, dtype, n=400):
    """States of a large and constant part, along which a target of -1 or 1 moves them by ``size``, relative to it."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(2, (1, n, 1, 1), generator=generator).double() * 2 - 1
    constant, along = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    return (3 * constant + size * 3 * constant.norm() / along.norm() * target * along).to(dtype), target


def share_read(states, target):
    """The slope of what is read, on the target."""
    fit = Ridge(1e-3)
    fit.add(states, {"y": target})
    read = torch.einsum("tbpi,tpij->tbpj", with_one(states), fit.solve()["y"])
    return ((read - read.mean()) * (target - target.mean())).sum() / (target - target.mean()).square().sum()


@pytest.mark.parametrize("times", [1, 8])
def test_what_is_as_small_as_rounding_is_not_read(times):
    states, target = varying_by(times * torch.finfo(torch.float32).eps, torch.float32)
    assert (states != states[:, :1]).any(), "the states do not vary"
    assert share_read(states, target) < 0.01


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-3), (torch.float64, 1e-5), (torch.bfloat16, 1e-1)])
def test_what_is_small_and_far_above_rounding_is_read(dtype, size):
    assert share_read(*varying_by(size, dtype)) > 0.95
