"""Ridge regression from states to targets, one at every place, from moments that are added batch by batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

States = Float[Tensor, "iteration batch pos d_model"]


def with_one(states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model_and_one"]:
    """In float64, with a constant as the last coordinate, for the offset of an affine map."""
    return F.pad(states.double(), (0, 1), value=1.0)


class Ridge:
    """A ridge regression at every iteration and token, in closed form from moments that are added batch by batch.

    Args:
        penalty: relative to the mean variance of the states.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty
        self.outer: Tensor | float = 0.0
        self.cross: dict[Hashable, Tensor] = {}

    def add(self, states: States, targets: Mapping[Hashable, Tensor]) -> None:
        x = with_one(states)
        self.outer = self.outer + einsum(x, x, "t batch pos i, t batch pos j -> t pos i j")
        for name, target in targets.items():
            target = target.expand(len(states), -1, -1, -1)
            self.cross[name] = self.cross.get(name, 0) + einsum(x, target, "t batch pos i, t batch pos j -> t pos i j")

    def means(self, name: Hashable) -> Float[Tensor, "iteration pos width"]:
        """Of a target, over what was added."""
        assert isinstance(self.outer, Tensor)
        return self.cross[name][:, :, -1] / self.outer[..., -1:, -1]

    def solve(self) -> dict[Hashable, Float[Tensor, "iteration pos d_model_and_one width"]]:
        """The maps from a state, with a one behind it, to each target."""
        assert isinstance(self.outer, Tensor)
        n = self.outer[..., -1:, -1]
        spread = self.outer.diagonal(dim1=-2, dim2=-1)[..., :-1] - self.outer[..., -1, :-1].square() / n
        penalty = F.pad((self.penalty * spread.mean(-1, keepdim=True)).expand_as(spread), (0, 1))
        regular = self.outer + torch.diag_embed(penalty)
        return {name: torch.linalg.solve(regular, cross) for name, cross in self.cross.items()}
