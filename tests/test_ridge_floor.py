"""A ridge regression of one prompt, or of states that do not vary, still has a map."""

import torch

from loopprobe.probes.ridge import Ridge, with_one


def test_one_prompt_is_read_back():
    states = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.ones(2, 1, 3, 1, dtype=torch.float64) * 5
    fit = Ridge(1e-4)
    fit.add(states, {"y": target})
    read = torch.einsum("tbpi,tpij->tbpj", with_one(states), fit.solve()["y"])
    torch.testing.assert_close(read, target, atol=1e-3, rtol=0)
