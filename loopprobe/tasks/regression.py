"""The regression tasks that ship: linear functions, sparse ones, decision trees, ReLU networks, and tables.

The classes of functions and their scales are from Garg et al., "What can transformers learn in-context?" (arXiv
2208.01066, sections 3 and 5).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.support.statistics import double
from loopprobe.tasks.interface import NUMBER, Optimum, Predictor, RegressionTask
from loopprobe.tasks.prompts import Prompts, normal
from loopprobe.tasks.shifts import Shift
from loopprobe.tasks.tables import from_tables, load_table

Labels = Float[Tensor, "batch point"]
Weights = Float[Tensor, "batch dim"]
Covariance = Float[Tensor, "batch point point"]


class FunctionTask(RegressionTask):
    """A class of functions of inputs x ~ N(0, I): it says what numbers determine a function and which labels it gives.

    Every prompt has its own function. From this follow the shifts of the inputs and labels (``tasks.shifts``), noise on
    the labels (``noise_std``) and their signs (``labels``); and the first prompts of a seed do not depend on how many
    are drawn.

    Attributes:
        noise_std: the standard deviation of noise on the labels.
    """

    noise_std: float = 0.0

    def numbers(self, n_dims: int) -> int:
        """Return how many standard normal numbers determine a function of so many dimensions."""
        raise NotImplementedError

    def label(
        self, xs: Float[Tensor, "batch point dim"], numbers: Float[Tensor, "batch number"], active: int
    ) -> tuple[Labels, Weights | None]:
        """Return the labels of inputs and, where the function has a vector of weights, these.

        Args:
            xs: the inputs.
            numbers: the numbers of each prompt's function.
            active: how many of the dimensions are not zero.
        """
        raise NotImplementedError

    def scale(self, n_dims: int) -> float:
        """Return E(y²) without noise: that of a linear function whose weights are N(0, 1)."""
        return 1.0 if self.labels == "sign" else float(n_dims)

    def correlation(self, cosines: Covariance) -> Covariance:
        """Return the correlation of the labels of two inputs, given the cosine between these."""
        return cosines

    def covariance(self, xs: Float[Tensor, "batch point dim"]) -> Covariance:
        """Return E[y y'] over the functions of the class, given the inputs.

        It is |x| |x'| times ``correlation``; for signs it is (2/π) arcsin of that, which is exact where the labels are
        Gaussian.
        """
        xs = double(xs)
        norms = xs.norm(dim=-1)
        sizes = norms[:, :, None] * norms[:, None]
        cosines = (einsum(xs, xs, "batch i dim, batch j dim -> batch i j") / sizes.clamp_min(1e-300)).clamp(-1, 1)
        correlation: Tensor = self.correlation(cosines)
        return correlation.arcsin() * (2 / math.pi) if self.labels == "sign" else sizes * correlation

    def draw(self, n_prompts: int, n_points: int, n_dims: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw inputs and their labels."""
        prompts = self.sample(n_prompts, n_points, n_dims, generator, active_dims=n_dims)
        return prompts.xs, prompts.ys

    def memory(self, n_prompts: int, n_points: int, n_dims: int, inside: int = 0) -> int:
        """Return the bytes of the random numbers in float64, and of inputs, labels and what stands ``inside``."""
        inputs = n_points * n_dims
        drawn = inputs + self.numbers(n_dims) + n_points
        return n_prompts * NUMBER * (drawn + max(drawn, 2 * inputs + 2 * inside))

    def sample(
        self,
        n_prompts: int,
        n_points: int,
        n_dims: int,
        generator: torch.Generator,
        *,
        active_dims: int,
        held_out: bool = False,
        shift: Shift | None = None,
        shift_generator: torch.Generator | None = None,
    ) -> Prompts:
        """Draw prompts, changed by a shift where one is given."""
        active = active_dims
        # Each prompt has one row, so that the first prompts of a seed do not depend on how many are drawn.
        sizes = [n_points * n_dims, self.numbers(n_dims), n_points]
        inputs, numbers, noise = normal((n_prompts, sum(sizes)), generator).split(sizes, dim=1)  # type: ignore[no-untyped-call]
        xs = inputs.reshape(n_prompts, n_points, n_dims)
        xs[..., active:] = 0
        shift = shift or Shift("as in training")
        xs = shift.input_factor * shift.inputs(xs, active, shift_generator or generator)
        ys, weights = self.label(xs, numbers, active)
        scale = self.scale(active)
        ys = shift.factor * ys + (self.noise_std + shift.noise_std * scale**0.5) * noise
        if self.labels == "sign":
            ys = torch.where(ys < 0, -1.0, 1.0)
        elif self.grows_with_inputs:
            scale *= shift.input_factor**2
        scale *= 1.0 if self.labels == "sign" else shift.factor**2
        weights = None if weights is None else (shift.factor * weights).float()
        return Prompts(xs.float(), ys.float(), scale=scale, weights=weights)

    @property
    def grows_with_inputs(self) -> bool:
        """Whether labels are multiplied by what inputs are multiplied by."""
        return True


@dataclass(frozen=True)
class LinearRegression(FunctionTask):
    """y = w·x, where w ~ N(0, I) and so E(y²) = n_dims."""

    name = "linear_regression"
    short = "lr"

    labels: str = "real"

    def numbers(self, n_dims: int) -> int:
        """Return the number of weights."""
        return n_dims

    def label(self, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, Weights]:
        """Label the inputs with a linear function."""
        return einsum(xs, numbers, "batch point dim, batch dim -> batch point"), numbers

    def optimum(self, prompts: Any) -> Optimum:
        """Return least squares, or ridge regression where labels have noise; of signs nothing."""
        if self.labels == "sign":
            return None
        if self.noise_std == 0:
            return "least_squares"
        return Predictor("ridge", f"ridge ({self.noise_std:g}²)", {"strength": self.noise_std**2})


@dataclass(frozen=True)
class NoisyLinearRegression(LinearRegression):
    """y = w·x + N(0, noise_std²)."""

    name = "noisy_linear_regression"
    short = "nlr"

    noise_std: float = 0.1


@dataclass(frozen=True)
class SparseLinearRegression(LinearRegression):
    """A linear function that has ``sparsity`` weights other than zero: E(y²) = sparsity."""

    name = "sparse_linear_regression"
    short = "slr"

    sparsity: int = 3

    def numbers(self, n_dims: int) -> int:
        """Return the number of weights and of their ranks."""
        return 2 * n_dims

    def label(self, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, Weights]:
        """Label the inputs with the weights of the lowest ranks."""
        weights, ranks = numbers.chunk(2, dim=1)
        chosen = ranks[:, :active].argsort(dim=1)[:, : self.sparsity]
        support = torch.zeros_like(weights).scatter(1, chosen, 1.0)
        return super().label(xs, weights * support, active)

    def scale(self, n_dims: int) -> float:
        """Return the number of weights that are not zero."""
        return 1.0 if self.labels == "sign" else float(min(self.sparsity, n_dims))

    def optimum(self, prompts: Any) -> Optimum:
        """Return the posterior mean over all supports; of signs nothing."""
        if self.labels == "sign":
            return None
        return Predictor("sparse_bayes", "sparse Bayes", {"sparsity": self.sparsity})


@dataclass(frozen=True)
class DecisionTree(FunctionTask):
    """A full binary tree: every inner node asks for the sign of one random coordinate, and leaves are N(0, 1)."""

    name = "decision_tree"
    short = "dt"

    depth: int = 4
    labels: str = "real"

    def numbers(self, n_dims: int) -> int:
        """Return the number of nodes."""
        return int(2 ** (self.depth + 1) - 1)

    def label(self, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, None]:
        """Label the inputs with the leaves that they end in."""
        inner = 2**self.depth - 1
        coordinates = (torch.special.ndtr(numbers[:, :inner]) * active).long().clamp_max(active - 1)
        node = torch.zeros(xs.shape[:2], dtype=torch.long)
        for _ in range(self.depth):
            asked = xs.gather(2, coordinates.gather(1, node)[..., None]).squeeze(2)
            node = 2 * node + 1 + (asked > 0).long()
        return numbers[:, inner:].gather(1, node - inner), None

    def scale(self, n_dims: int) -> float:
        """Return the variance of the leaves."""
        return 1.0

    @property
    def grows_with_inputs(self) -> bool:
        """The leaves do not depend on the size of the inputs."""
        return False

    def covariance(self, xs: Float[Tensor, "batch point dim"]) -> Covariance:
        """Return the probability that two inputs end in the same leaf, where they have the same sign too."""
        positive = double(xs) > 0
        active = (xs != 0).any(1, keepdim=True)  # no node asks about a dimension that is not filled
        agree = (positive[:, :, None] == positive[:, None]) & active[:, None]
        return (agree.sum(-1) / active.sum(-1)[..., None].clamp_min(1)) ** self.depth


@dataclass(frozen=True)
class ReluNetwork(FunctionTask):
    """y = √(2 / hidden) · Σ_i v_i relu(u_i·x), where u_i, v_i ~ N(0, 1) and so E(y²) = n_dims."""

    name = "relu_network"
    short = "relu"

    hidden: int = 100
    labels: str = "real"

    def numbers(self, n_dims: int) -> int:
        """Return the number of weights of both layers."""
        return self.hidden * (n_dims + 1)

    def label(self, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, None]:
        """Label the inputs with a network."""
        inner, outer = numbers.split([self.hidden * xs.shape[-1], self.hidden], dim=1)  # type: ignore[no-untyped-call]
        inner = inner.reshape(len(inner), self.hidden, -1)
        before = einsum(xs, inner, "batch point dim, batch hidden dim -> batch point hidden")
        ys = einsum(before.relu(), outer, "batch point hidden, batch hidden -> batch point")
        return ys * (2 / self.hidden) ** 0.5, None

    def correlation(self, cosines: Covariance) -> Covariance:
        """Return the arc-cosine kernel (Cho and Saul 2009, equation 6)."""
        angles = cosines.arccos()
        return (angles.sin() + (math.pi - angles) * cosines) / math.pi

    def memory(self, n_prompts: int, n_points: int, n_dims: int, inside: int = 0) -> int:
        """Return the bytes of the random numbers, the inputs, the hidden units and the labels."""
        return super().memory(n_prompts, n_points, n_dims, n_points * self.hidden)


@dataclass(frozen=True)
class Tables(RegressionTask):
    """Rows of tables of real data, see ``tasks.tables``: one half is for training, the other for evaluation."""

    name = "tables"
    short = "tab"

    tables: tuple[str, ...] = ()
    labels: str = "real"

    def __post_init__(self) -> None:
        """Raise LoopprobeError where no table is named."""
        if not self.tables:
            raise LoopprobeError("task tables needs task.tables: name one or more")

    def scale(self, n_dims: int) -> float:
        """Return the variance of standardised labels."""
        return 1.0

    def optimum(self, prompts: Any) -> Optimum:
        """Return ridge regression, which suits standardised columns."""
        return Predictor("ridge", "ridge (1)", {"strength": 1.0})

    def memory(self, n_prompts: int, n_points: int, n_dims: int) -> int:
        """Return the bytes of the rotations, the inputs and the labels."""
        inputs = n_points * n_dims
        drawn = inputs + 2 * n_dims**2 + n_points
        return n_prompts * NUMBER * (drawn + max(drawn, 2 * inputs))

    def sample(
        self,
        n_prompts: int,
        n_points: int,
        n_dims: int,
        generator: torch.Generator,
        *,
        active_dims: int,
        held_out: bool = False,
        shift: Shift | None = None,
        shift_generator: torch.Generator | None = None,
    ) -> Prompts:
        """Draw prompts from the rows of one half.

        Raises:
            LoopprobeError: a shift is asked for.
        """
        if shift is not None:
            raise LoopprobeError(f"prompts from tables cannot be shifted ({shift.words}): leave out one of the two")
        tables = [load_table(name) for name in self.tables]
        part = "test" if held_out else "train"
        prompts = from_tables(tables, n_prompts, n_points, active_dims, generator, part=part)
        return dataclasses.replace(prompts, xs=F.pad(prompts.xs, (0, n_dims - active_dims)))
