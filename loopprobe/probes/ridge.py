"""Ridge regression from states to targets, one at every iteration and token, from moments added batch by batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.model.protocol import LoopedModel
from loopprobe.support.statistics import double
from loopprobe.tasks import PromptBatch

States = Float[Tensor, "iteration batch pos d_model"]


SOLVABLE = 1e-12  # of the mean square: with so small a penalty the equations can still be solved in float64


def with_one(states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch width"]:
    """Convert states to float64 and append the constant 1, whose weight is the offset of an affine map."""
    return F.pad(double(states), (0, 1), value=1.0)


def states_after_layers(model: LoopedModel, prompts: PromptBatch, n_loops: int) -> States:
    """Run, and return the residual stream at every token after every layer of every loop, layers fastest."""
    _, cache = model.run_with_cache(*prompts.inputs, n_loops=n_loops, names="resid_post")
    layers = [cache.stack("resid_post", layer=layer) for layer in range(model.sizes.n_layers)]
    return torch.stack(layers, dim=1).flatten(0, 1)


class Ridge:
    """A ridge regression at every iteration and token, in closed form from moments that are added batch by batch.

    States that do not vary have a map too, to the mean of the targets. Rounding moves them all the same, by about the
    precision ``eps`` of their dtype relative to their size, and a penalty relative to that variance would read it. So
    the penalty is at least ``eps`` times their mean square: far above the variance of rounding, about ``eps²`` times
    it, and far below that of states which differ by more than the root of ``eps``, relative to their size. States in
    half precision have the floor of float32: one of their own would hide what is to be read.

    Args:
        penalty: the ridge penalty, relative to the mean variance of the states.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty
        self.floor = SOLVABLE
        self.outer: Tensor | float = 0.0
        self.cross: dict[Hashable, Tensor] = {}

    def add(self, states: States, targets: Mapping[Hashable, Tensor]) -> None:
        """Add a batch to the moments.

        Args:
            states: states of the batch.
            targets: from a name to a target [1 or iteration, batch, pos, width] of the batch, in float64.
        """
        self.floor = max(self.floor, min(torch.finfo(kind).eps for kind in (states.dtype, torch.float32)))
        x = with_one(states)
        self.outer = self.outer + einsum(x, x, "t batch pos i, t batch pos j -> t pos i j")
        for name, target in targets.items():
            target = target.to(x.device).expand(len(states), -1, -1, -1)
            self.cross[name] = self.cross.get(name, 0) + einsum(x, target, "t batch pos i, t batch pos j -> t pos i j")

    def means(self, name: Hashable) -> Float[Tensor, "iteration pos width"]:
        """The mean of a target over all batches that were added."""
        assert isinstance(self.outer, Tensor)
        return self.cross[name][:, :, -1] / self.outer[..., -1:, -1]

    def solve(self) -> dict[Hashable, Float[Tensor, "iteration pos affine width"]]:
        """The maps from a state, with a one appended, to each target: affine = d_model + 1."""
        assert isinstance(self.outer, Tensor)
        n = self.outer[..., -1:, -1]
        spread = self.outer.diagonal(dim1=-2, dim2=-1)[..., :-1] - self.outer[..., -1, :-1].square() / n
        floor = self.floor * self.outer.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        penalty = F.pad((self.penalty * spread.mean(-1, keepdim=True)).clamp_min(floor).expand_as(spread), (0, 1))
        regular = self.outer + torch.diag_embed(penalty)
        return {name: torch.linalg.solve(regular, cross) for name, cross in self.cross.items()}
