"""Decoding the state at every loop, layer and token: decoders are trained on some prompts and scored on others.

The decoders are ridge regression at every place, and small networks over all tokens. Each stands beside two controls:
the targets of other prompts (shuffled; Hewitt and Liang, arXiv 1909.03368), and training on prompts whose weights are
all one (the reference's control). The causal check then edits the state along what was decoded, and tests whether the
prediction moves as the decoder predicts.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes.causal import causal_check
from loopprobe.probes.dataset import stamp
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.decoders import targets_of, with_ones
from loopprobe.probes.loops import require_loops_or_layers, training_prompts
from loopprobe.probes.networks import CONTROLS, network_scores
from loopprobe.probes.results import results_dataset
from loopprobe.probes.ridge import Ridge, States, states_after_layers, with_one
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import float64_device, to_numpy
from loopprobe.tasks import Prompts, TokenPrompts
from loopprobe.types import Progress

VARIES = 1e-6  # the least variance of a target that is decoded


@configuration
class DecodeConfig:
    """The length of the loop, and how the decoders are trained.

    Attributes:
        loops: iterations; None: as many as trained.
        train_prompts: the number of further prompts that decoders are trained on, drawn from another seed.
        ridge: the penalty of ridge regression, relative to the mean variance of the states.
        network_loops: the number of iterations at which networks are trained, evenly spread; 0: none.
        network_steps: the number of steps of their training.
    """

    loops: PositiveInt | None = None
    train_prompts: PositiveInt = 1024
    ridge: PositiveFloat = 1e-3
    network_loops: NonNegativeInt = 8
    network_steps: PositiveInt = 600


def run(
    checkpoint: Checkpoint,
    prompts: Prompts | TokenPrompts,
    config: DecodeConfig,
    progress: Progress = lambda steps: steps,
    *,
    training: Prompts | TokenPrompts | None = None,
) -> xr.Dataset:
    """Decode the residual stream after every layer of every loop.

    Args:
        checkpoint, prompts, config: the model, the prompts that decoders are scored on, and the options.
        progress: wraps, one after the other, the batches, the training of the networks, and the causal check.
        training: prompts that the decoders are trained on, all of them; None: ``train_prompts`` more of the model's
            task, which the prompts must be of.

    Returns:
        A dataset with dims ``target``, ``control`` (none, shuffled, all weights one), ``loop`` (iterations done, from
        1), ``layer`` and ``position`` (token, from 0, without the query's label):

        * ``r2 [control, target, loop, layer, position]``: of ridge regression at the place, on prompts that it was not
          trained on; missing where the target does not vary. The target ``w, true`` is there where both the training
          prompts and the others have weights
        * ``loop_index_r2 [layer, position]``: the R² of the number of the loop
        * with ``network_loops``, the variables of ``network_scores``
        * for a looped model, the variables of ``causal_check``

        ``attrs["fitted_on"]`` says on which prompts the decoders are trained. Of a token task it is the dataset of
        ``results.results_dataset``, which takes no networks.

    Raises:
        LoopprobeError: the prompts have no example, further prompts are neither given nor known how to draw, or loops
            are asked of a model that is not looped.
    """
    check(checkpoint, config, prompts)
    model = checkpoint.model
    prompts = prompts.to(checkpoint.device)
    seed = prompts.origin.get("held_out_seed", 0) + 1
    fitting, fitted_on = training_prompts(checkpoint, prompts, config.train_prompts, seed, training)
    if isinstance(prompts, TokenPrompts):
        assert isinstance(fitting, TokenPrompts), "training prompts are of the same kind"
        n_loops = config.loops or checkpoint.loops_of(prompts)
        data = results_dataset(checkpoint, fitting, prompts, n_loops, config.ridge, progress)
        data = data.assign_coords(model=checkpoint.label)
        data.attrs |= {"fitted_on": fitted_on, "iteration": "loop" if model.cfg.n_loops > 1 else "layer"}
        return stamp(data, "decode", checkpoint, prompts, config)
    assert isinstance(fitting, Prompts), "training prompts are of the same kind"
    places = Places(model, config)
    steps = places.iterations
    names = [name for name in targets_of(prompts[:1], steps) if name in targets_of(fitting[:1], steps)]
    decoders = Decoders(places, names, config.ridge)
    size = chunk_size(checkpoint.device)
    for batch in progress(fitting.split(size)):
        decoders.add(batch)
    decoders.solve()
    for batch in progress(prompts.split(size)):
        decoders.score(batch)
    data = decoders.dataset().assign_coords(model=checkpoint.label)
    data.attrs |= {"fitted_on": fitted_on, "iteration": "loop" if places.n_loops > 1 else "layer"}
    if config.network_loops:
        picked = [steps[i] for i in places.of_networks]
        gathered = {part: torch.cat(states, dim=1) for part, states in decoders.for_networks.items()}
        networks = network_scores(gathered, fitting, prompts, picked, names, config.network_steps, progress)
        data = data.merge(networks)
    if places.n_loops > 1:
        of_prediction = decoders.maps["none", "prediction, least squares"]
        causal = causal_check(model, fitting, prompts, of_prediction, places.n_loops, progress=progress)
        data = data.merge(causal, combine_attrs="no_conflicts")
    return stamp(data, "decode", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: DecodeConfig, prompts: Prompts | TokenPrompts) -> None:
    """Raise LoopprobeError where loops are asked of a model that is not looped, or the prompts have no example."""
    require_loops_or_layers(checkpoint, config.loops)
    if isinstance(prompts, Prompts) and (points := prompts.n_answers) < 2:
        raise LoopprobeError(f"prompts of {points} point have no example to decode: give prompts of at least 2")


class Places:
    """The places where states are decoded: after every layer of every loop, layers fastest.

    Args:
        model: the model.
        config: how far the loop runs, and at how many of its loops (of an ordinary transformer, its layers) networks
            are trained.
    """

    def __init__(self, model: LoopedTransformer, config: DecodeConfig) -> None:
        self.model = model
        self.n_loops, self.n_layers = config.loops or model.cfg.n_loops, model.cfg.n_layers
        looped = model.cfg.n_loops > 1
        places = [(loop, layer) for loop in range(self.n_loops) for layer in range(self.n_layers)]
        self.iterations = [loop + 1 if looped else layer + 1 for loop, layer in places]
        count = self.n_loops if looped else self.n_layers
        picked = np.unique(np.linspace(0, count - 1, min(count, config.network_loops)).round().astype(int))
        last = self.n_layers - 1  # networks read the last layer of loops that are evenly spread, or such layers
        self.of_networks = [int(i) * self.n_layers + last if looped else int(i) for i in picked]

    def states(self, prompts: Prompts) -> States:
        """Run, and return the residual stream at every place, without the query's label."""
        return states_after_layers(self.model, prompts, self.n_loops)[:, :, :-1]


class Decoders:
    """Ridge regressions of every target at every place, with their controls.

    Args:
        places: where.
        names: of the targets.
        ridge: the penalty, relative to the mean variance of the states.

    Attributes:
        for_networks: the states that networks are trained and scored on, batch by batch.
        maps: after ``solve``, from a control and a target to the maps of all places.
    """

    def __init__(self, places: Places, names: list[str], ridge: float) -> None:
        self.places, self.names = places, names
        self.fit, self.fit_ones = Ridge(ridge), Ridge(ridge)
        self.index = _LoopIndex(places.n_loops, places.n_layers, ridge)
        self.for_networks: dict[str, list[Tensor]] = {"training": [], "ones": [], "test": []}
        self.left: dict[tuple[str, str], Any] = {}
        self.total: dict[str, Any] = {}
        self.n_prompts = 0

    def targets(self, batch: Prompts) -> dict[str, Tensor]:
        """Return what the state of a token might hold, by name."""
        return {name: t for name, t in targets_of(batch, self.places.iterations).items() if name in self.names}

    def add(self, batch: Prompts) -> None:
        """Fit on a batch, and on the same inputs with weights that are all one."""
        states, ones = self.places.states(batch), with_ones(batch)
        targets = self.targets(batch)
        shuffled = {name: target.roll(1, dims=1) for name, target in targets.items()}
        self.fit.add(states, _named("none", targets) | _named("shuffled", shuffled))
        ones_states = self.places.states(ones)
        self.fit_ones.add(ones_states, _named("all weights one", self.targets(ones)))
        self.index.add(states)
        self.for_networks["training"].append(states[self.places.of_networks])
        self.for_networks["ones"].append(ones_states[self.places.of_networks])

    def solve(self) -> None:
        """Find the maps, after the last batch to fit on."""
        self.maps = self.fit.solve() | self.fit_ones.solve()
        self.index.solve()

    def score(self, batch: Prompts) -> None:
        """Add a batch to what is left of every target."""
        states = self.places.states(batch)
        x = with_one(states)
        self.index.score(states)
        self.for_networks["test"].append(states[self.places.of_networks])
        self.n_prompts += batch.n_prompts
        for name, target in self.targets(batch).items():
            spread = (target - self.fit.means(("none", name))[:, None]).square().sum((1, 3))
            self.total[name] = self.total.get(name, 0) + spread
            for control in CONTROLS:
                error = (torch.einsum("tbpi,tpij->tbpj", x, self.maps[control, name]) - target).square().sum((1, 3))
                self.left[control, name] = self.left.get((control, name), 0) + error

    def dataset(self) -> xr.Dataset:
        """R² = 1 − left / total of every control and target, and that of the number of the loop."""
        shape = (self.places.n_loops, self.places.n_layers, self.total[self.names[0]].shape[-1])
        r2 = np.full((len(CONTROLS), len(self.names), *shape), np.nan)
        for i, control in enumerate(CONTROLS):
            for j, name in enumerate(self.names):
                total = self.total[name]
                value = 1 - self.left[control, name] / total.clamp_min(1e-12)
                varies = total > VARIES * self.n_prompts
                r2[i, j] = to_numpy(torch.where(varies, value, torch.nan).reshape(shape))
        variables: dict[str, Any] = {"r2": (("control", "target", "loop", "layer", "position"), r2)}
        if self.places.n_loops > 1:
            variables["loop_index_r2"] = (("layer", "position"), self.index.r2())
        axes = {name: np.arange(size) for name, size in zip(("loop", "layer", "position"), shape, strict=True)}
        axes["loop"] = axes["loop"] + 1
        return xr.Dataset(variables, coords={"control": list(CONTROLS), "target": self.names, **axes})


def _named(control: str, targets: dict[str, Tensor]) -> dict[Hashable, Tensor]:
    return {(control, name): target for name, target in targets.items()}


class _LoopIndex:
    """Ridge regression of the number of the loop, over the states of all loops."""

    def __init__(self, n_loops: int, n_layers: int, ridge: float) -> None:
        self.shape = n_loops, n_layers
        self.fit = Ridge(ridge)
        self.number = torch.linspace(-1, 1, n_loops, dtype=torch.float64) if n_loops > 1 else torch.zeros(1).double()
        self.left: Tensor | float = 0.0
        self.count = 0

    def _arranged(
        self, states: States
    ) -> tuple[Float[Tensor, "layer loop_batch pos d_model"], Float[Tensor, "layer loop_batch pos 1"]]:
        """[layer, loop and batch, pos, d_model], and the number of the loop beside it."""
        x = states.unflatten(0, self.shape).transpose(0, 1)
        number = self.number.to(float64_device(x.device))[None, :, None, None, None].expand(*x.shape[:-1], 1)
        return x.flatten(1, 2), number.flatten(1, 2)

    def add(self, states: States) -> None:
        x, number = self._arranged(states)
        self.fit.add(x, {"loop": number})

    def solve(self) -> None:
        self.map = self.fit.solve()["loop"]

    def score(self, states: States) -> None:
        x, number = self._arranged(states)
        read = torch.einsum("lbpi,lpij->lbpj", with_one(x), self.map)
        self.left = self.left + (read - number).square().sum((1, 3))
        self.count += x.shape[1]

    def r2(self) -> Float[ndarray, "layer position"]:
        assert isinstance(self.left, Tensor)
        return to_numpy(1 - self.left / self.count / self.number.square().mean().item())


PROBE = Probe(
    "decode",
    DecodeConfig,
    run,
    check,
    Shown(
        "decode:decode_figures",
        "algorithms:decode_table",
        quantities=(
            Quantity("r2", along=("position",), across="loop", first=("control",), unit="R²", bounds=(0, 1)),
            Quantity(
                "accuracy", along=("position",), across="loop", first=("control",), unit="share read", bounds=(0, 1)
            ),
        ),
    ),
    needs=frozenset({"weights"}),
    given=("training",),
)
