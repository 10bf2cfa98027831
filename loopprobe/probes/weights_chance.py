"""What chance gives: scores and spectra of matrices that are turned at random, or drawn at random.

The score of a writer A and a reader B is ‖A B‖ / (‖A‖ ‖B‖) with Frobenius norms. Turned by a random rotation R it is
‖A R B‖ / (‖A‖ ‖B‖), and depends on the singular values of both and on a block of R alone: with A = U S Vᵀ and
B = U' S' V'ᵀ, ‖A R B‖² = Σ_ij S_i² (Vᵀ R U')_ij² S'_j², in which Vᵀ R U' is distributed as a corner of R. Its mean over
all rotations is 1/d in d dimensions, whatever the singular values are; its spread is wider the fewer of them there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from transformer_lens.FactoredMatrix import FactoredMatrix

AT_ONCE = 2**22  # numbers of the matrices that are drawn together


@dataclass(frozen=True)
class Drawn:
    """Circuits of random weights, whose every number is drawn from one normal distribution.

    Attributes:
        singular_values: relative to the norm, the largest first.
        effective_rank: see ``effective_rank``.
        real_share: see ``real_share``.
        composition: scores of pairs of such circuits.
    """

    singular_values: Float[Tensor, "draw rank"]
    effective_rank: Float[Tensor, " draw"]
    real_share: Float[Tensor, " draw"]
    composition: Float[Tensor, " draw"]


def corners(n: int, size: int, width: int, seed: int) -> Float[Tensor, "draw size size"]:
    """The squares of the corners of random rotations of ``width`` dimensions, in float64.

    A rotation is the orthogonal factor of a normal matrix, with the signs that make it uniform (Mezzadri, arXiv
    math-ph/0609050).
    """
    generator = torch.Generator().manual_seed(seed)
    at_once, made = max(1, AT_ONCE // (size * width)), []
    for start in range(0, n, at_once):
        drawn = torch.randn(min(at_once, n - start), width, size, generator=generator, dtype=torch.float64)
        orthogonal, upper = torch.linalg.qr(drawn)
        signs = upper.diagonal(dim1=-2, dim2=-1).sign()
        made.append((orthogonal * signs[:, None])[:, :size].square())
    return torch.cat(made)


def turned_scores(
    writer: Float[Tensor, " rank"], readers: Float[Tensor, "reader rank"], squares: Float[Tensor, "draw rank rank"]
) -> Float[Tensor, "draw reader"]:
    """The scores of a writer with every reader, with each rotation between them.

    Args:
        writer, readers: singular values.
        squares: from ``corners``.
    """
    shares = writer.square() / writer.square().sum(-1), readers.square() / readers.square().sum(-1, keepdim=True)
    return torch.einsum("a,nab,rb->nr", shares[0], squares, shares[1]).sqrt()


def drawn_circuits(n: int, width: int, d_head: int, squares: Float[Tensor, "draw rank rank"], seed: int) -> Drawn:
    """Draw circuits of normal weights in ``width`` dimensions, and pair each with another by a rotation.

    Args:
        n: how many.
        width, d_head: their sizes.
        squares: from ``corners``, one for each.
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    spectra: list[Tensor] = []
    shares: list[Tensor] = []
    at_once = max(1, AT_ONCE // (4 * width * d_head))
    for start in range(0, n, at_once):
        count = min(at_once, n - start)
        one, other = (
            FactoredMatrix(
                torch.randn(count, width, d_head, generator=generator, dtype=torch.float64),
                torch.randn(count, d_head, width, generator=generator, dtype=torch.float64),
            )
            for _ in range(2)
        )
        spectra.append(torch.stack([one.S, other.S], 1)[..., : squares.shape[-1]])
        shares.append(real_share(one.eigenvalues))
    values = torch.cat(spectra)
    values = values / values.norm(dim=-1, keepdim=True)
    scores = torch.einsum("na,nab,nb->n", values[:, 0].square(), squares[:n], values[:, 1].square()).sqrt()
    return Drawn(values[:, 0], effective_rank(values[:, 0]), torch.cat(shares), scores)


def effective_rank(singular_values: Float[Tensor, "*circuit rank"]) -> Float[Tensor, "*circuit"]:
    """(Σ s²)² / Σ s⁴: the number of singular values, were they all as large; NaN of a matrix that is zero."""
    squares = singular_values.square()
    return squares.sum(-1).square() / squares.square().sum(-1)


def real_share(eigenvalues: Complex[Tensor, "*circuit rank"]) -> Float[Tensor, "*circuit"]:
    """Σ Re λ / Σ |λ|, from −1 to 1; NaN of a matrix without eigenvalues but zero.

    1 says that the matrix gives back in its own direction what it is given, as one that copies does (Elhage et al.
    2021, "Detecting copying behavior"); −1 that it gives the opposite, and 0 that it turns it.
    """
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)


def chance_interval(values: Float[Tensor, "draw ..."], level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of what was drawn, and the ends between which so large a share of it lies."""
    drawn = values.numpy()
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(drawn.mean(0)), np.asarray(low), np.asarray(high)
