"""The loop map near a state: eigenvalues, singular values and Lyapunov exponents, from Jacobian-vector products.

Attention is causal, so that with positions in order the Jacobian is block-triangular, and its eigenvalues are those of
its diagonal blocks, one a position: how the state of a token after the loop depends on its own state before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.sparse.linalg import LinearOperator, eigs, svds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from loopprobe.dynamics.maps import LoopMap, Map, State
from loopprobe.hook_points import LoopHookPoint


def jvp(system: Map, z: State, tangent: State) -> State:
    """Jacobian of one iteration at z, times a tangent."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # the fused kernels have no forward-mode derivative; torch warns of itself when it derives for the first time
        warnings.filterwarnings("ignore", "`torch.jit.script` is ")
        return torch.func.jvp(system.step, (z,), (tangent,))[1]


def vjp(system: Map, z: State, cotangent: State) -> State:
    """Transposed Jacobian of one iteration at z, times a cotangent."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.vjp(system.step, z)[1](cotangent)[0].detach()


def leading_eigenvalues(system: Map, z: State, k: int = 10) -> Complex[Tensor, "batch k"]:
    """The k eigenvalues of largest modulus of the Jacobian at z, complex pairs included, the largest first.

    Of the loop of a model from its blocks by position, which is exact; of any other map by Arnoldi iteration. On a
    trained model of 62 tokens the blocks take seconds for 32 prompts, where Arnoldi iteration takes minutes and is
    off by up to 0.01 in modulus, since the whole Jacobian is far from normal.
    """
    if isinstance(system, LoopMap):
        return _sorted(position_spectra(system, z).flatten(1))[:, :k]
    return arnoldi_eigenvalues(system, z, k)


def arnoldi_eigenvalues(
    system: Map, z: State, k: int = 10, *, tolerance: float = 1e-8, seed: int = 0
) -> Complex[Tensor, "batch k"]:
    """The k eigenvalues of largest modulus of the Jacobian at z, prompt by prompt, complex pairs included.

    By implicitly restarted Arnoldi iteration (ARPACK; Lehoucq, Sorensen and Yang 1998), from Jacobian-vector products
    alone. For the last digits give a map in float64.

    Args:
        system: the map.
        z: the states.
        k: how many; at most the width of a prompt's state less 2.
        tolerance: relative, of an eigenvalue.
        seed: of the first vector.

    Returns:
        Eigenvalues, the largest modulus first.
    """
    found = []
    for i in range(len(z)):
        own, at = system.at(slice(i, i + 1)), z[i : i + 1]
        operator = _operator(own, at)
        start = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(operator.dtype)
        values = eigs(operator, k, which="LM", return_eigenvectors=False, tol=tolerance, v0=start)
        found.append(values[np.argsort(-np.abs(values))])
    return torch.from_numpy(np.stack(found))


def leading_singular_values(
    system: Map, z: State, k: int = 3, *, tolerance: float = 1e-6, seed: int = 0
) -> Float[Tensor, "batch k"]:
    """The k largest singular values of the Jacobian at z, prompt by prompt: the largest growth in one iteration."""
    found = []
    for i in range(len(z)):
        operator = _operator(system.at(slice(i, i + 1)), z[i : i + 1])
        start = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(operator.dtype)
        values = svds(operator, k, return_singular_vectors=False, tol=tolerance, v0=start)
        found.append(np.sort(values)[::-1])
    return torch.from_numpy(np.stack(found))


def position_spectra(system: LoopMap, z: State, chunk: int = 8) -> Complex[Tensor, "batch pos d_model"]:
    """All eigenvalues of the Jacobian of a loop at z, split by the position that they belong to.

    The diagonal blocks of all positions come together, d_model Jacobian-vector products in all.

    Args:
        system: the loop of a model.
        z: the states.
        chunk: coordinates at once.

    Returns:
        Eigenvalues of every position's block, the largest modulus first; all together they are the Jacobian's.
    """
    return _sorted(torch.linalg.eigvals(diagonal_blocks(system, z, chunk)))


def diagonal_blocks(system: LoopMap, z: State, chunk: int = 8) -> Float[Tensor, "batch pos d_model d_model"]:
    """∂ (state of a token after the loop) / ∂ (its own state before), of every token."""
    columns = []
    with torch.no_grad(), _tokens_apart(system, z):
        for basis in torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).split(chunk):
            tangents = basis[:, None, None].expand(-1, *z.shape[:2], -1)
            columns.append(torch.func.vmap(partial(jvp, system, z))(tangents))
    return torch.cat(columns).movedim(0, -1)


def lyapunov_exponents(
    system: Map, z: State, n_steps: int, k: int = 2, *, seed: int = 0
) -> tuple[Float[Tensor, "batch k"], Float[Tensor, "step batch k"]]:
    """The k largest Lyapunov exponents along a trajectory, a loop: above 0 chaos, 0 a circle, below 0 a point or cycle.

    k tangents are carried along and made orthogonal again in every iteration (Benettin et al. 1980); the first
    quarter of the steps is left out, while they turn.

    Args:
        system: the map.
        z: the states to start from, after the transient.
        n_steps: iterations.
        k: exponents.
        seed: of the first tangents.

    Returns:
        The exponents, and the logarithm of the growth in every iteration that was kept.
    """
    batch, n = len(z), z[0].numel()
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(batch, n, k, generator=generator).to(z))
    growth = []
    for step in range(n_steps):
        pushed = torch.stack([jvp(system, z, q[..., i].reshape(z.shape)).flatten(1) for i in range(k)], dim=-1)
        with torch.no_grad():
            z = system.step(z)
        q, r = torch.linalg.qr(pushed)
        if step >= n_steps // 4:
            growth.append(r.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-300).log())
    rates = torch.stack(growth)
    return rates.mean(0), rates


def _operator(system: Map, z: State) -> LinearOperator:
    n = z.numel()
    dtype = np.float64 if z.dtype == torch.float64 else np.float32
    vector = lambda x: torch.from_numpy(np.ascontiguousarray(x.reshape(-1), dtype)).to(z).reshape(z.shape)  # noqa: E731
    return LinearOperator(
        (n, n),
        matvec=lambda x: jvp(system, z, vector(x)).reshape(-1).cpu().numpy(),
        rmatvec=lambda x: vjp(system, z, vector(x)).reshape(-1).cpu().numpy(),
        dtype=dtype,
    )


def _sorted(values: Complex[Tensor, "... n"]) -> Complex[Tensor, "... n"]:
    return values.gather(-1, values.abs().argsort(-1, descending=True))


@contextmanager
def _tokens_apart(system: LoopMap, z: State) -> Iterator[None]:
    """Let every token see the others as they are in the loop from z, and only itself as it comes to be.

    The loop's value at z is the same; but its derivative is that of each token by its own state alone, since the
    keys and values of the others no longer follow theirs.
    """
    model = system.model
    layers = [f"loops.0.blocks.{i}.attn" for i in range(model.cfg.n_layers)]
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
        own = (q * k).sum(-1).transpose(-1, -2) / math.sqrt(q.shape[-1])  # batch head pos
        return torch.where(torch.eye(own.shape[-1], dtype=torch.bool, device=own.device), own[..., None], scores)

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
