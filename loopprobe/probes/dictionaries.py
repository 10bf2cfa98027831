"""Sparse dictionaries of states: top-k sparse autoencoders, several of one size at once.

The recipe is that of Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093, sections 2 and A: tied
initialisation, decoder rows of length 1, the k largest activations, Adam, and an auxiliary loss by which features that
have been silent for long learn what is left. One thing differs: the error of a state is divided by the variance of its
loop, so that every loop counts alike and no loop with large states is all that a dictionary learns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_dataset
from loopprobe.support.statistics import to_numpy
from loopprobe.support.threads import go_on
from loopprobe.types import Progress

AUXILIARY = 1 / 32  # the weight of the auxiliary loss
SILENT = 50  # steps after which a feature that was not active counts as dead in training
SETTLES = 0.2  # share of the steps in which the learning rate falls to zero, and in which activity is counted
Inputs = Float[Tensor, "dictionary sample d_model"]
Codes = Float[Tensor, "dictionary sample feature"]


@dataclass(frozen=True)
class Dictionaries:
    """Top-k dictionaries of one size: a = top_k(relu(E (z − offset) + bias)), and z is about offset + Σ aᵢ dᵢ.

    Attributes:
        encoder: the rows of E.
        bias: of the activations.
        decoder: the directions dᵢ, each of length 1, in the space of states.
        offset: what a state without an active feature is.
        k: how many features may be active at once.
    """

    encoder: Float[Tensor, "dictionary feature d_model"]
    bias: Float[Tensor, "dictionary feature"]
    decoder: Float[Tensor, "dictionary feature d_model"]
    offset: Float[Tensor, "dictionary d_model"]
    k: int

    def encode(self, states: Inputs) -> Codes:
        """Compute the activations: the k largest, as far as they are above zero; all others are zero."""
        centred = states - self.offset[:, None]
        return top_k(torch.baddbmm(self.bias[:, None], centred, self.encoder.mT), self.k)

    def decode(self, codes: Codes) -> Inputs:
        """Compute the states that activations stand for."""
        return torch.baddbmm(self.offset[:, None], codes, self.decoder)

    def __len__(self) -> int:
        """How many dictionaries there are."""
        return len(self.decoder)

    def __getitem__(self, number: int) -> Dictionaries:
        """Choose one of the dictionaries, or the only one where all loops share it."""
        return self._of(lambda part: part[number : number + 1]) if len(self) > 1 else self

    def to(self, device: torch.device) -> Dictionaries:
        """Move the dictionaries to a device."""
        return self._of(lambda part: part.to(device))

    def _of(self, change: Callable[[Tensor], Tensor]) -> Dictionaries:
        """The dictionaries with every part changed alike."""
        return Dictionaries(change(self.encoder), change(self.bias), change(self.decoder), change(self.offset), self.k)

    def ordered(self, order: Int[Tensor, "dictionary feature"]) -> Dictionaries:
        """Put the features of each dictionary in another order."""
        rows = torch.arange(len(order), device=order.device)[:, None]
        return replace(
            self, encoder=self.encoder[rows, order], bias=self.bias[rows, order], decoder=self.decoder[rows, order]
        )


def top_k(values: Float[Tensor, "... feature"], k: int) -> Float[Tensor, "... feature"]:
    """Keep the k largest values along the last axis, as far as they are above zero, and set the others to zero."""
    kept = values.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(values).scatter(-1, kept.indices, kept.values.relu())


def train_dictionaries(
    states: Float[Tensor, "loop sample d_model"],
    n_features: int,
    k: int,
    *,
    by_loop: bool = False,
    steps: int = 800,
    batch: int = 256,
    learning_rate: float = 5e-3,
    seed: int = 0,
    progress: Progress = lambda steps: steps,
) -> Dictionaries:
    """Train one dictionary that all loops share, or one for each loop, all at once.

    Args:
        states: after every loop, in float32 or float64, as many of each.
        n_features: of each dictionary.
        k: how many of them may be active at once.
        by_loop: one dictionary for each loop, which sees the states of that loop alone; otherwise one that sees all.
        steps: of the training.
        batch: the states in a step, of all loops together.
        learning_rate: of Adam; it falls to zero in the last fifth of the steps.
        seed: of all random numbers.
        progress: wraps the steps.

    Returns:
        The dictionary, or those of the loops in their order. Features are ordered by their mean activation in the last
        fifth of the training, the most active first.
    """
    n_loops, n_samples, width = states.shape
    several = n_loops if by_loop else 1
    generator = torch.Generator().manual_seed(seed)
    centre, scale, spread = _standard(states, by_loop)
    directions = F.normalize(torch.randn(several, n_features, width, generator=generator), dim=-1).to(states)
    decoder, encoder = directions.clone().requires_grad_(), directions.clone().requires_grad_()
    bias, offset = (states.new_zeros(several, n).requires_grad_() for n in (n_features, width))
    parameters = [encoder, decoder, bias, offset]
    fused = states.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, eps=6.25e-10, fused=fused)
    silent = torch.zeros(several, n_features, dtype=torch.long, device=states.device)
    activity = states.new_zeros(several, n_features)
    draw = _drawing(n_loops, n_samples, batch, by_loop, generator)
    with torch.enable_grad():
        for step in progress(range(steps)):
            go_on()
            left = min(1.0, (steps - step) / (SETTLES * steps))
            optimizer.param_groups[0]["lr"] = learning_rate * left
            loops, samples = (indices.to(states.device) for indices in draw())
            x = (states[loops, samples] - centre[:, None]) / scale[:, None, None]
            weight = scale[:, None].square() / spread[loops]
            inside = torch.baddbmm(bias[:, None], x - offset[:, None], encoder.mT)
            codes = top_k(inside, k)
            error = x - torch.baddbmm(offset[:, None], codes, decoder)
            loss = (error.square().sum(-1) * weight).mean(-1).sum()
            active = codes.detach().sum(1)
            silent = torch.where(active > 0, 0, silent + 1)
            dead = silent > SILENT
            if bool(dead.any()):
                loss = loss + AUXILIARY * _auxiliary(inside, dead, error.detach(), decoder, weight, width // 2)
            optimizer.zero_grad()
            loss.backward()
            assert decoder.grad is not None, "the loss depends on it"
            decoder.grad -= (decoder.grad * decoder.detach()).sum(-1, keepdim=True) * decoder.detach()
            optimizer.step()
            with torch.no_grad():
                decoder.copy_(F.normalize(decoder, dim=-1))
                if left < 1:
                    activity += active
    for parameter in parameters:
        parameter.requires_grad_(False)
    trained = Dictionaries(encoder, bias * scale[:, None], decoder, centre + offset * scale[:, None], k)
    return trained.ordered(activity.argsort(dim=-1, descending=True, stable=True))


def _standard(
    states: Float[Tensor, "loop sample d_model"], by_loop: bool
) -> tuple[Float[Tensor, "dictionary d_model"], Float[Tensor, " dictionary"], Float[Tensor, " loop"]]:
    """The mean of what each dictionary sees, the root mean square of its entries, and the variance of every loop."""
    means, spread = states.mean(1), states.var(1, correction=0).sum(-1)
    centre = means if by_loop else means.mean(0, keepdim=True)
    square = spread + (means - centre).square().sum(-1)
    square = square if by_loop else square.mean(0, keepdim=True)
    floor = 1e-9 * float(states.square().sum(-1).mean()) or 1.0  # of states that do not vary
    return centre, (square.clamp_min(floor) / states.shape[-1]).sqrt(), spread.clamp_min(floor)


def _auxiliary(
    inside: Codes, dead: Tensor, error: Inputs, decoder: Tensor, weight: Tensor, most: int
) -> Float[Tensor, ""]:
    """What is left of the error when dead features explain it, the ``most`` strongest of them."""
    codes = top_k(inside.where(dead[:, None], 0), min(most, inside.shape[-1]))
    return ((error - codes @ decoder).square().sum(-1) * weight).mean(-1).sum()


def _drawing(
    n_loops: int, n_samples: int, batch: int, by_loop: bool, generator: torch.Generator
) -> Callable[[], tuple[Int[Tensor, "dictionary sample"], Int[Tensor, "dictionary sample"]]]:
    """Draw the loops and the samples of a step, again and again."""
    shape = (n_loops, max(1, batch // n_loops)) if by_loop else (1, batch)

    def draw() -> tuple[Tensor, Tensor]:
        samples = torch.randint(n_samples, shape, generator=generator)
        if by_loop:
            return torch.arange(n_loops)[:, None].expand(shape), samples
        return torch.randint(n_loops, shape, generator=generator), samples

    return draw


def variables_of(dictionary: Dictionaries) -> dict[str, tuple[tuple[str, ...], Any]]:
    """The variables by which a dataset carries one dictionary; its attribute ``k`` says how many may be active."""
    of_feature = ("feature", "dim")
    return {
        "decoder": (of_feature, to_numpy(dictionary.decoder[0])),
        "encoder": (of_feature, to_numpy(dictionary.encoder[0])),
        "bias": (("feature",), to_numpy(dictionary.bias[0])),
        "offset": (("dim",), to_numpy(dictionary.offset[0])),
    }


def dictionary_of(data: xr.Dataset) -> Dictionaries:
    """The dictionary that a dataset of the features probe carries.

    Raises:
        LoopprobeError: it carries none.
    """
    if not isinstance(data, xr.Dataset) or not {"decoder", "encoder", "bias", "offset", "k"} <= {*data, *data.attrs}:
        raise LoopprobeError("this holds no dictionary: give a dataset or file that loopprobe features wrote")

    def part(name: str) -> Tensor:
        return torch.tensor(data[name].values).float()[None]

    return Dictionaries(part("encoder"), part("bias"), part("decoder"), part("offset"), int(data.attrs["k"]))


def read_dictionary(path: str) -> xr.Dataset:
    """The dataset of a file that ``loopprobe features`` wrote.

    Raises:
        LoopprobeError: there is none, or it holds no dictionary.
    """
    data = read_dataset(Path(path))
    dictionary_of(data)
    return data


def feature_direction(path: str, number: int) -> Float[Tensor, " d_model"]:
    """The decoder direction of one feature in a file that ``loopprobe features`` wrote.

    Raises:
        LoopprobeError: there is no such file or feature.
    """
    decoder = dictionary_of(read_dictionary(path)).decoder[0]
    if number >= len(decoder):
        raise LoopprobeError(f"{path} has {len(decoder)} features, 0 to {len(decoder) - 1}, and none is {number}")
    return decoder[number]
