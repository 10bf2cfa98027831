"""The loop map near a state: eigenvalues, singular values and Lyapunov exponents, from Jacobian-vector products.

Attention is causal, so that with positions in order the Jacobian is block-triangular. Its eigenvalues are those of its
diagonal blocks. Each position has one block, the derivative of a token's state after the loop by its state before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.sparse.linalg import ArpackError, LinearOperator, eigs, svds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from loopprobe.dynamics.maps import LoopMap, Map, State
from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.support.statistics import HALF, float64_device, to_numpy

DENSE = 768  # the width of a prompt's state up to which the whole Jacobian is formed
COLUMNS = 128  # of it that are computed at once
TINY = 1e-300  # stands for zero in a logarithm


def jvp(system: Map, z: State, tangent: State) -> State:
    """Multiply the Jacobian of one iteration at z by a tangent."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # The fused kernels have no forward-mode derivative, and torch warns of its own code at the first derivative.
        warnings.filterwarnings("ignore", "`torch.jit.script` is ")
        return torch.func.jvp(system.step, (z,), (tangent,))[1]


def vjp(system: Map, z: State, cotangent: State) -> State:
    """Multiply the transposed Jacobian of one iteration at z by a cotangent."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.vjp(system.step, z)[1](cotangent)[0].detach()


def leading_eigenvalues(system: Map, z: State, k: int = 10) -> Complex[Tensor, "batch k"]:
    """Compute the Jacobian's k eigenvalues of largest modulus at z, complex pairs included, the largest first.

    For the loop of a model whose tokens can be taken apart they are computed from its blocks by position, which is
    exact, and for any other map by ``arnoldi_eigenvalues``. On a trained model of 62 tokens the blocks take seconds
    for 32 prompts, where Arnoldi iteration takes minutes and is off by up to 0.01 in modulus, since the whole Jacobian
    is far from normal.

    Raises:
        LoopprobeError: k is not from 1 to the width of a prompt's state, or the states are in half precision or not
            finite.
    """
    _require(z, k)
    if has_blocks(system):
        return _sorted(position_spectra(system, z).flatten(1))[:, :k]
    return arnoldi_eigenvalues(system, z, k)


def has_blocks(system: Map) -> TypeGuard[LoopMap]:
    """Tell whether the Jacobian of a map has one block a token, which can be taken out of the loop."""
    return isinstance(system, LoopMap) and {"causal", "past"} <= system.model.supports


def arnoldi_eigenvalues(
    system: Map, z: State, k: int = 10, *, tolerance: float = 1e-8, seed: int = 0
) -> Complex[Tensor, "batch k"]:
    """Compute the Jacobian's k eigenvalues of largest modulus at z, prompt by prompt, complex pairs included.

    The method is implicitly restarted Arnoldi iteration (ARPACK; Lehoucq, Sorensen and Yang 1998), which needs only
    Jacobian-vector products. The whole Jacobian is used where it is small, or where nearly all of its eigenvalues are
    wanted. A map in float64 gives the last digits as well.

    Args:
        system: the map.
        z: the states.
        k: the number of eigenvalues, at most the width of a prompt's state.
        tolerance: the relative tolerance of an eigenvalue.
        seed: the seed of the first vector.

    Returns:
        The eigenvalues, the largest modulus first.

    Raises:
        LoopprobeError: see ``leading_eigenvalues``; or the iteration did not converge.
    """
    n = _require(z, k)
    rows = []
    for i in range(len(z)):
        one, state = system.at(slice(i, i + 1)), z[i : i + 1]
        if n <= DENSE or k > n - 2:  # ARPACK finds at most n - 2
            rows.append(np.linalg.eigvals(_jacobian(one, state)))
        else:
            operator, start = _operator(one, state, seed)
            options = {"which": "LM", "return_eigenvectors": False, "tol": tolerance, "v0": start}
            rows.append(_converged(lambda: eigs(operator, k, **options), k))  # noqa: B023 (called at once)
    values = np.stack([row[np.argsort(-np.abs(row))][:k] for row in rows])
    return torch.from_numpy(values.astype(np.result_type(values, np.complex64)))


def leading_singular_values(
    system: Map, z: State, k: int = 3, *, tolerance: float = 1e-6, seed: int = 0
) -> Float[Tensor, "batch k"]:
    """Compute the Jacobian's k largest singular values at z, prompt by prompt: the largest growth in one iteration.

    ARPACK computes them from Jacobian-vector products, or the whole Jacobian is used, as in ``arnoldi_eigenvalues``.

    Raises:
        LoopprobeError: see ``arnoldi_eigenvalues``.
    """
    n = _require(z, k)
    rows = []
    for i in range(len(z)):
        one, state = system.at(slice(i, i + 1)), z[i : i + 1]
        if n <= DENSE or k > n - 1:  # ARPACK finds at most n - 1
            rows.append(np.linalg.svd(_jacobian(one, state), compute_uv=False))
        else:
            operator, start = _operator(one, state, seed)
            options = {"return_singular_vectors": False, "tol": tolerance, "v0": start}
            rows.append(_converged(lambda: svds(operator, k, **options), k))  # noqa: B023 (called at once)
    return torch.from_numpy(np.stack([np.sort(row)[::-1][:k] for row in rows]))


def position_spectra(system: LoopMap, z: State, chunk: int = 8) -> Complex[Tensor, "batch pos d_model"]:
    """Compute all eigenvalues of a loop's Jacobian at z, by the position that they belong to.

    The diagonal blocks of all positions are computed together, with d_model Jacobian-vector products in all.

    Args:
        system: the loop of a model, whose attention is causal; no other map has a spectrum by position.
        z: the states.
        chunk: the number of coordinates computed at once.

    Returns:
        The eigenvalues of every position's block, the largest modulus first; together they are the eigenvalues of the
        Jacobian. They are on the CPU where the model's device has no float64.

    Raises:
        LoopprobeError: the map is not the loop of a model, or the states are in half precision or not finite.
    """
    blocks = diagonal_blocks(system, z, chunk)
    return _sorted(torch.linalg.eigvals(blocks.to(float64_device(blocks.device))))


def diagonal_blocks(system: LoopMap, z: State, chunk: int = 8) -> Float[Tensor, "batch pos d_model d_model"]:
    """Compute the derivative of every token's state after the loop with respect to its state before the loop.

    Args:
        system, z, chunk: see ``position_spectra``.

    Raises:
        LoopprobeError: see ``position_spectra``.
    """
    if not isinstance(system, LoopMap):
        raise LoopprobeError(
            f"a spectrum by position needs a LoopMap, the loop of a model, not {type(system).__name__}: "
            "use leading_eigenvalues"
        )
    _require(z)
    columns = []
    with torch.no_grad(), _tokens_apart(system, z):
        for basis in torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).split(chunk):
            tangents = basis[:, None, None].expand(-1, *z.shape[:2], -1)
            columns.append(torch.func.vmap(partial(jvp, system, z))(tangents))
    return torch.cat(columns).movedim(0, -1)


def lyapunov_exponents(
    system: Map, z: State, n_steps: int, k: int = 2, *, seed: int = 0
) -> tuple[Float[Tensor, "batch k"], Float[Tensor, "step batch k"]]:
    """Compute the k largest Lyapunov exponents of a trajectory, per loop.

    An exponent above 0 means chaos, 0 a circle, and below 0 a point or a cycle. k tangents are carried along and made
    orthogonal again in every iteration (Benettin et al. 1980). The first quarter of the steps is left out, while the
    tangents turn to their directions.

    Args:
        system: the map.
        z: the states to start from, after the transient.
        n_steps: the number of iterations.
        k: the number of exponents, at most the width of a prompt's state.
        seed: the seed of the first tangents.

    Returns:
        The exponents, and the logarithm of the growth in every iteration that is not left out.

    Raises:
        LoopprobeError: k is not from 1 to the width of a prompt's state, there is no iteration, or the states are in
            half precision or not finite.
    """
    batch, n = len(z), _require(z, k)
    if n_steps < 1:
        raise LoopprobeError(f"n_steps ({n_steps}) must be at least 1: raise it")
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(batch, n, k, generator=generator).to(z))
    growth = []
    for step in range(n_steps):
        pushed = torch.stack([jvp(system, z, q[..., i].reshape(z.shape)).flatten(1) for i in range(k)], dim=-1)
        with torch.no_grad():
            z = system.step(z)
        q, r = torch.linalg.qr(pushed)
        if step >= n_steps // 4:
            growth.append(r.diagonal(dim1=-2, dim2=-1).abs().clamp_min(max(TINY, torch.finfo(r.dtype).tiny)).log())
    rates = torch.stack(growth)
    return rates.mean(0), rates


def _require(z: State, k: int = 1) -> int:
    """Check that k eigenvalues can be computed; return the width of a prompt's state.

    Raises:
        LoopprobeError: k is not from 1 to the width, or the states are in half precision or not finite.
    """
    n = z[0].numel()
    if not 1 <= k <= n:
        raise LoopprobeError(f"k ({k}) must be from 1 to {n}, the width of a prompt's state: choose k there")
    if z.dtype in HALF:
        raise LoopprobeError(
            f"a spectrum in {str(z.dtype).removeprefix('torch.')} has no digits: give a map and states in float32 or "
            "float64, such as LoopMap.of(model, prompts, torch.float64)"
        )
    if not torch.isfinite(z).all():
        raise LoopprobeError("the states are not finite, so that the map has no derivative there: give finite states")
    return n


def _jacobian(system: Map, z: State) -> Float[np.ndarray, "n n"]:
    """Compute the whole Jacobian at the state of one prompt, many columns at once, each at a copy of the state."""
    rows = []
    for tangents in torch.eye(z.numel(), dtype=z.dtype, device=z.device).split(COLUMNS):
        copies = system.at(torch.zeros(len(tangents), dtype=torch.int64, device=z.device))
        rows.append(jvp(copies, z.repeat(len(tangents), 1, 1), tangents.reshape(-1, *z.shape[1:])).flatten(1))
    return to_numpy(torch.cat(rows).mT)


def _operator(system: Map, z: State, seed: int) -> tuple[LinearOperator, Float[np.ndarray, " n"]]:
    """Return the Jacobian at the state of one prompt as an operator, and a random vector to start from."""
    n = z.numel()
    dtype = np.float64 if z.dtype == torch.float64 else np.float32

    def vector(x: np.ndarray) -> State:
        return torch.from_numpy(np.ascontiguousarray(x.reshape(-1), dtype)).to(z).reshape(z.shape)

    operator = LinearOperator(
        (n, n),
        matvec=lambda x: to_numpy(jvp(system, z, vector(x)).reshape(-1)),
        rmatvec=lambda x: to_numpy(vjp(system, z, vector(x)).reshape(-1)),
        dtype=dtype,
    )
    return operator, np.random.default_rng(seed).standard_normal(n).astype(dtype)


def _converged(solve: Callable[[], np.ndarray], k: int) -> np.ndarray:
    """Return the values that ARPACK finds.

    Raises:
        LoopprobeError: ARPACK finds none.
    """
    try:
        return solve()
    except ArpackError as error:
        raise LoopprobeError(
            f"ARPACK did not find k = {k} values ({' '.join(str(error).split())}): raise the tolerance, or change k"
        ) from None


def _sorted(values: Complex[Tensor, "... n"]) -> Complex[Tensor, "... n"]:
    return values.gather(-1, values.abs().argsort(-1, descending=True))


@contextmanager
def _tokens_apart(system: LoopMap, z: State) -> Iterator[None]:
    """Freeze the other tokens' keys and values at z, so the derivative gives each token's diagonal block.

    The value of the loop at z stays the same.
    """
    model = system.model
    layers = [f"loops.0.blocks.{i}.attn" for i in range(model.sizes.n_layers)]
    at_z: dict[str | None, Tensor] = {}
    now: dict[str | None, Tensor] = {}

    def keep(x: Tensor, hook: LoopHookPoint) -> None:
        at_z[hook.name] = x

    def note(x: Tensor, hook: LoopHookPoint) -> None:
        now[hook.name] = x

    def as_at_z(x: Tensor, hook: LoopHookPoint) -> Tensor:
        now[hook.name] = x
        return at_z[hook.name].expand_as(x)

    def own_scores(scores: Tensor, hook: LoopHookPoint) -> Tensor:
        q, k = (now[str(hook.name).replace("attn_scores", what)] for what in ("q", "k"))
        diagonal = (q * k).sum(-1).transpose(-1, -2) / math.sqrt(q.shape[-1])  # batch head pos
        on_diagonal = torch.eye(diagonal.shape[-1], dtype=torch.bool, device=diagonal.device)
        return torch.where(on_diagonal, diagonal[..., None], scores)

    def own_values(mixed: Tensor, hook: LoopHookPoint) -> Tensor:
        attn = str(hook.name).removesuffix("hook_z")
        on_itself = now[f"{attn}hook_pattern"].diagonal(dim1=-2, dim2=-1).transpose(-1, -2)[..., None]
        return mixed + on_itself * (now[f"{attn}hook_v"] - at_z[f"{attn}hook_v"])

    with model.hooks(fwd_hooks=[(f"{layer}.hook_{what}", keep) for layer in layers for what in ("k", "v")]):
        system.step(z)
    edits = {
        "q": note, "k": as_at_z, "v": as_at_z, "attn_scores": own_scores, "pattern": note, "z": own_values
    }  # fmt: skip
    with model.hooks(fwd_hooks=[(f"{layer}.hook_{what}", edit) for layer in layers for what, edit in edits.items()]):
        yield
