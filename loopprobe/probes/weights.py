"""What can be read from weights alone: the circuits of every head, and how much of what one writes another reads.

The OV circuit of a head, W_V W_O, tells what it writes for what it reads; its QK circuit, W_Q W_Kᵀ, which tokens it
looks at (Elhage et al. 2021, "A mathematical framework for transformer circuits"). The composition score of two heads,
‖OV · R‖ / (‖OV‖ ‖R‖), tells how much of what the first writes the queries, keys or values of the second read. In a loop
the second head may stand in a later layer of the same loop, or in any layer of the next one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from transformer_lens.FactoredMatrix import FactoredMatrix

from loopprobe.config.budget import require
from loopprobe.config.selection import Choice, resolve
from loopprobe.config.strict import configuration
from loopprobe.model.head_weights import HeadWeights
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.weights_chance import (
    chance_interval,
    corners,
    drawn_circuits,
    effective_rank,
    real_share,
    turned_scores,
)
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

MODES = ("Q", "K", "V")
LAGS = {0: "same loop", 1: "next loop"}


@configuration
class WeightsConfig:
    """Which heads, and what chance is.

    Attributes:
        layers, heads: those that are read, from 0, see ``config.selection``. None: all.
        fold: put the gains of norms into the weights, as TransformerLens's ``fold_ln`` does, and take away what no norm
            sees. None: do, where the model's norms stand at known places.
        vectors: how many pairs of singular vectors are kept of each circuit.
        draws: random rotations that scores are compared with, and random circuits.
        level: the share of them that lies within the interval of chance.
        seed: of these.
    """

    layers: Choice | None = None
    heads: Choice | None = None
    fold: bool | None = None
    vectors: PositiveInt = 3
    draws: PositiveInt = Field(default=1000, ge=100)
    level: float = Field(default=0.95, gt=0, lt=1)
    seed: NonNegativeInt = 0


def run(
    subject: Subject, prompts: PromptBatch, config: WeightsConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Read the circuits of every head, and the composition of every pair.

    No prompt is run. Everything is computed in float64.

    Returns:
        A dataset with dims ``circuit`` (OV, QK), ``head`` (named as other probes name it, with the coordinates
        ``layer`` and ``number``), ``rank`` (from 1), ``vector`` (from 1) and ``dim`` (of the residual stream):

        * ``singular_value [circuit, head, rank]``, the largest first, and ``effective_rank [circuit, head]``,
          (Σ s²)² / Σ s⁴
        * ``reads``, ``writes [circuit, head, vector, dim]``: the singular vectors of the largest singular values. An OV
          circuit reads along the first and writes along the second; a QK circuit asks along the first and is asked
          along the second. Of either sign of a pair it is that with which the largest entry of the first is positive.
        * ``eigenvalue_real``, ``eigenvalue_imag [circuit, head, rank]``, the largest modulus first, and ``real_share
          [circuit, head]``, Σ Re λ / Σ |λ|: of OV the copying score; of QK how far a token looks for tokens like itself

        and, where there is a pair of heads whose composition is known (none where a single layer does not loop), with
        dims ``mode`` (Q, K, V: what the reader reads with), ``lag`` (loops from writer to reader, 0 or 1), ``writer``
        and ``reader``:

        * ``composition``: the score, from 0 to 1, and at most 1/√r for two circuits of r equal singular values; missing
          where the reader does not come behind the writer
        * ``chance`` with ``_low`` and ``_high``: its mean over random rotations between writer and reader, which leave
          all singular values as they are, and the ends between which ``level`` of them lie
        * ``verdict``: 1 above that interval, −1 below it, 0 within it or where there is no score

        ``drawn_{name}`` with ``_low`` and ``_high``, of ``composition``, ``effective_rank``, ``real_share`` and
        ``singular_value [rank]`` (relative to the norm), are those of circuits of the same sizes with normal weights.

    Raises:
        LoopprobeError: there are no such heads, their weights cannot be told or their norms folded, or the memory
            cannot hold them.
    """
    weights = _weights(subject, config)
    _require_memory(subject, weights, config)
    weights = weights.chosen(_places(subject, weights, config))
    width, d_head = weights.n_free, weights.W_O.shape[1]
    rank = min(width, d_head)
    squares = corners(config.draws, rank, width, config.seed)
    random = drawn_circuits(config.draws, width, d_head, squares, config.seed)
    circuits = {"OV": weights.OV, "QK": weights.QK}
    each: dict[str, list[np.ndarray]] = {}
    for circuit in circuits.values():
        spectrum = circuit.S[:, :rank]
        values = circuit.eigenvalues.cpu()
        values = values.gather(-1, values.abs().argsort(-1, descending=True))
        for name, part in {
            "singular_value": spectrum, "effective_rank": effective_rank(spectrum),
            **_vectors(circuit, min(config.vectors, rank)),
            "eigenvalue_real": values.real[..., :rank], "eigenvalue_imag": values.imag[..., :rank],
            "real_share": real_share(values),
        }.items():  # fmt: skip
            each.setdefault(name, []).append(to_numpy(part))
    axes = {"singular_value": ("rank",), "effective_rank": (), "reads": ("vector", "dim"), "writes": ("vector", "dim"),
            "eigenvalue_real": ("rank",), "eigenvalue_imag": ("rank",), "real_share": ()}  # fmt: skip
    variables: dict[str, Any] = {
        name: (("circuit", "head", *axes[name]), np.stack(parts)) for name, parts in each.items()
    }
    for name, drawn in (
        ("singular_value", random.singular_values),
        ("effective_rank", random.effective_rank),
        ("real_share", random.real_share),
        ("composition", random.composition),
    ):
        variables |= with_ends(
            f"drawn_{name}", ("rank",) if drawn.ndim > 1 else (), chance_interval(drawn, config.level)
        )
    names = weights.names
    data = xr.Dataset(
        variables,
        coords={
            "circuit": list(circuits), "head": names, "layer": ("head", list(weights.layers)),
            "number": ("head", list(weights.numbers)), "rank": np.arange(1, rank + 1),
            "vector": np.arange(1, variables["reads"][1].shape[2] + 1), "model": subject.label,
        },
        attrs={"weights_read": weights.words, "free_dimensions": width},
    )  # fmt: skip
    composed = _composition(weights, subject.model.sizes.n_loops > 1, squares, config, progress)
    if composed:
        data = data.assign(composed).assign_coords(mode=list(MODES), lag=list(LAGS), writer=names, reader=names)
        data = data.sel(lag=[lag for lag in LAGS if bool(data.composition.sel(lag=lag).notnull().any())])
    return stamp(data, "weights", subject, prompts, config)


def check(subject: Subject, config: WeightsConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where there are no such heads, or their weights cannot be told."""
    weights = _weights(subject, config)
    _places(subject, weights, config)
    _require_memory(subject, weights, config)


def _weights(subject: Subject, config: WeightsConfig) -> HeadWeights:
    weights: HeadWeights = subject.model.head_weights(config.fold)  # type: ignore[attr-defined]  # it supports heads
    return weights


def _places(subject: Subject, weights: HeadWeights, config: WeightsConfig) -> list[int]:
    """The places of the chosen heads among all."""
    sizes = subject.model.sizes
    layers, numbers = resolve(config.layers, sizes.n_layers, "layer"), resolve(config.heads, sizes.n_heads, "head")
    return [
        i
        for i, (layer, number) in enumerate(zip(weights.layers, weights.numbers, strict=True))
        if (layers is None or layer in layers) and (numbers is None or number in numbers)
    ]


def _require_memory(subject: Subject, weights: HeadWeights, config: WeightsConfig) -> None:
    n_heads = len(_places(subject, weights, config))
    d_head, d_model = weights.W_O.shape[1:]
    rank = min(weights.n_free, d_head)
    numbers = 14 * n_heads * d_model * rank + 6 * len(MODES) * len(LAGS) * n_heads**2
    numbers += config.draws * (rank**2 + 2 * n_heads + 2 * rank)
    require(8 * numbers, f"weights of {n_heads:,} heads of {subject.label}", "choose layers or heads, or lower draws")


def _vectors(circuit: FactoredMatrix, n: int) -> dict[str, Float[Tensor, "head vector dim"]]:
    """The singular vectors of the largest singular values, with signs that do not depend on the machine."""
    first, second = circuit.U[..., :n].mT, circuit.V[..., :n].mT
    signs = first.gather(-1, first.abs().argmax(-1, keepdim=True)).sign()
    return {"reads": first * signs, "writes": second * signs}


def _composition(
    weights: HeadWeights, is_looped: bool, squares: Tensor, config: WeightsConfig, progress: Progress
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The scores of all pairs with what chance gives; nothing where there is no pair."""
    layers = torch.tensor(weights.layers)
    behind = {0: layers[:, None] < layers[None], 1: torch.ones(len(layers), len(layers), dtype=torch.bool)}
    if not (weights.is_added and is_looped):
        del behind[1]
    behind = {lag: pairs for lag, pairs in behind.items() if bool(pairs.any())}
    if not behind:
        return {}
    rank = squares.shape[-1]
    shape = (len(MODES), len(LAGS), len(layers), len(layers))
    names = ("composition", "chance", "chance_low", "chance_high")
    made = {name: np.full(shape, np.nan) for name in names}
    writers, spectra = weights.OV.collapse_l(), weights.OV.S[:, :rank].cpu()
    sizes = writers.flatten(1).norm(dim=-1)
    for mode, lag in progress([(mode, lag) for mode in MODES for lag in behind]):
        circuit = weights.reader(mode, next_loop=lag == 1)
        readers, read = circuit.collapse_r(), circuit.S[:, :rank].cpu()
        for i, writer in enumerate(writers):
            at = behind[lag][i].numpy()
            if not at.any():
                continue
            place = MODES.index(mode), lag, i, at
            products = (writer @ readers).flatten(1).norm(dim=-1) / (sizes[i] * readers.flatten(1).norm(dim=-1))
            made["composition"][place] = to_numpy(products)[at]
            turned = chance_interval(turned_scores(spectra[i], read[at], squares), config.level)
            for name, values in zip(names[1:], turned, strict=True):
                made[name][place] = values
    score, low, high = (made[name] for name in ("composition", "chance_low", "chance_high"))
    dims = ("mode", "lag", "writer", "reader")
    verdict = (score > high).astype(np.int8) - (score < low).astype(np.int8)
    return {**{name: (dims, values) for name, values in made.items()}, "verdict": (dims, verdict)}


PROBE = Probe(
    "weights",
    WeightsConfig,
    run,
    check,
    Shown(
        "weights:weights_figures",
        "weights:weights_table",
        quantities=(Quantity("composition", along=("reader",), across="writer", unit="composition score"),),
    ),
    needs=frozenset({"heads"}),
    of_weights=True,
)
