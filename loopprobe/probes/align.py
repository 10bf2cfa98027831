"""The algorithm that a loop resembles, iteration by iteration, by its errors and its induced weights.

Similarity of errors (Fu et al., arXiv 2310.17086, section 3.3): the cosine between the error vectors of model and
algorithm over the points of a prompt. Similarity of induced weights (von Oswald et al., arXiv 2212.07677, section 3):
the cosine between ∂prediction/∂query and the algorithm's weights. Each loop is matched with the step whose predictions
are nearest, on other prompts than those that are scored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes.dataset import stamp
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.lens import LensConfig, layer_readings
from loopprobe.probes.loops import require_loops_or_layers, training_prompts
from loopprobe.probes.matches import SCALED, Outcome, improving, labelled, match
from loopprobe.reference import algorithms
from loopprobe.reference.algorithms import Problem, predictions
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.support.statistics import double, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

Model = Callable[[Tensor, Tensor], Float[Tensor, "loop batch point"]]  # from xs and ys to the predictions of all loops
IDENTIFIED = 0.99  # an algorithm that explains this share of the predictions is what the model does
BATCH = 64  # prompts at once


@configuration
class AlignConfig:
    """The length of the loop and of the algorithms, and how the algorithms are fitted.

    Attributes:
        loops: iterations; None: as many as trained.
        steps: the number of steps of the algorithms; for ridge, the number of strengths.
        fit_prompts: the number of further prompts that free constants are fitted and steps matched on, drawn from
            another seed.
    """

    loops: PositiveInt | None = None
    steps: PositiveInt = 60
    fit_prompts: PositiveInt = 256


def run(
    checkpoint: Checkpoint,
    prompts: Prompts,
    config: AlignConfig,
    progress: Progress = lambda steps: steps,
    *,
    training: Prompts | None = None,
) -> xr.Dataset:
    """Align the loops of a model with the steps of algorithms; for an ordinary transformer, its layers.

    The layers of an ordinary transformer are read by a tuned lens, fitted on further prompts. The null model has the
    same configuration and was never trained.

    Args:
        checkpoint, prompts, config: the model, the prompts, and the options.
        progress: wraps the two models.
        training: prompts that constants are fitted on, and half of them the lens of an ordinary transformer; None:
            ``fit_prompts`` more of the model's task, which the prompts must be of.

    Returns:
        The dataset of ``align``, with the same variables of the null model, ``null_…``, where they have no ``step``.

    Raises:
        LoopprobeError: loops are asked of a model that is not looped, or further prompts are neither given nor known
            how to draw.
    """
    check(checkpoint, config, prompts)
    seed = prompts.origin.get("held_out_seed", 0)
    fitting, fitted_on = training_prompts(checkpoint, prompts, config.fit_prompts, seed + 1, training)
    of_lens, _ = training_prompts(checkpoint, prompts, LensConfig().train_prompts, seed + 2, training)
    if training is not None and checkpoint.config.model.n_loops == 1:
        half = len(training.ys) // 2
        if half < 1:
            raise LoopprobeError("training prompts (1) must be at least 2, half of them for the lens: give more")
        fitting, of_lens = fitting[:half], of_lens[half:]
    prompts = prompts.to(checkpoint.device)
    untrained = LoopedTransformer(checkpoint.config.model, torch.Generator().manual_seed(0)).to(checkpoint.model.W_pos)
    data, null = (
        align(_reader(model, of_lens, config), prompts, fitting, steps=config.steps)
        for model in progress([checkpoint.model, untrained])
    )
    without_step = [name for name in null.data_vars if "step" not in null[name].dims]
    data = data.merge(null[without_step].rename({name: f"null_{name}" for name in without_step}))
    looped = checkpoint.config.model.n_loops > 1
    data = data.assign_coords(model=checkpoint.label)
    data.attrs |= {
        "iteration": "loop" if looped else "layer",
        "fitted_on": fitted_on,
    }
    return stamp(data, "align", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: AlignConfig, prompts: Prompts) -> None:
    """Raise LoopprobeError where loops are asked of a model that is not looped."""
    require_loops_or_layers(checkpoint, config.loops)


def align(model: Model, prompts: Prompts, fitting: Prompts, steps: int = 60) -> xr.Dataset:
    """Align any model's iterations with those of the algorithms.

    Args:
        model: from xs and ys to predictions [iteration, batch, point], differentiable.
        prompts: on which similarities are scored.
        fitting: others, on which constants are fitted and each iteration is matched with a step.
        steps: of the algorithms.

    Returns:
        A dataset with dims ``algorithm``, ``loop`` (iterations done, from 1) and ``step`` (steps done, from 0):

        * ``error_similarity [algorithm, loop, step]``: mean over prompts; ``weight_similarity`` of the weights that are
          induced at the query; ``distance`` of the predictions at the query
        * ``best_step [algorithm, loop]``; there ``best_error_similarity``, ``best_weight_similarity`` and
          ``best_distance``, with ``_low`` and ``_high``: 95 % bootstrap intervals over prompts
        * ``explained [algorithm]`` …: 1 − Σ(model − algorithm)² / Σ model², over all iterations and points, each
          iteration with its best step; ``gain [algorithm]`` …: how much more than least squares scaled from 0 to 1;
          missing where the algorithm diverges on these prompts
        * ``steps_per_loop [algorithm]`` …: slope of the best step over the loop, through zero, while the model still
          improves
        * ``model_error [loop]``: the error at the query

        ``attrs["identified"]`` names the algorithm that explains most, and at least 0.99, else ``none``;
        ``attrs["constants"]`` says what was fitted.
    """
    of_fitting, of_prompts = (_predict(model, part) for part in (fitting, prompts))
    weights = induced_weights(model, prompts)
    fitting, prompts = (part.to(of_prompts.device) for part in (fitting, prompts))
    on_fitting, on_prompts = Problem.of(fitting), Problem.of(prompts)
    chosen, constants = fitted(on_fitting, of_fitting, steps, fitting.scale)
    outcome = Outcome(
        of_fitting, of_prompts, weights, prompts, on_fitting, on_prompts, improving(prompts, of_prompts)
    )  # fmt: skip
    matches = {name: match(outcome, iterates) for name, iterates in chosen.items()}
    data = labelled(matches, steps)
    data["model_error"] = "loop", to_numpy(prompts.errors(of_prompts)[..., -1].mean(1))
    share = data.explained.values
    enough = share >= max(IDENTIFIED, np.nanmax(share) - 1e-3)  # of equals the simplest, which comes first
    data.attrs |= {"identified": list(chosen)[int(enough.argmax())] if enough.any() else "none", "constants": constants}
    return data


def fitted(
    problem: Problem, of_model: Float[Tensor, "loop batch point"], steps: int, scale: float
) -> tuple[dict[str, Callable[[Problem], Any]], str]:
    """Fit the free constants of the algorithms so that their first steps are the model's first iterations.

    Args:
        problem: the problem of the fitting prompts.
        of_model: the model's predictions on them.
        steps: the number of steps of the algorithms.
        scale: the mean square of a label.

    Returns:
        A dict from the name of an algorithm to its iterates on any problem, and the constants in words.
    """
    n_loops, n_dims = len(of_model), problem.xs.shape[-1]
    largest = torch.linalg.eigvalsh(problem.second[:, -1])[:, -1].mean().item()

    def loss(iterates: Any) -> Tensor:
        return (predictions(problem, iterates)[1:] - of_model).square().mean() / scale

    def best_step(problem: Problem) -> Any:
        return algorithms.gradient_descent(problem, steps, algorithms.best_rate(problem))

    start = of_model.new_tensor(0.5 / largest)
    rate = algorithms.fit(lambda p: loss(algorithms.gradient_descent(problem, n_loops, p)), start)
    no_momentum = torch.stack([rate, torch.zeros_like(rate)])
    pair = algorithms.fit(lambda p: loss(algorithms.momentum(problem, n_loops, p[0], p[1])), no_momentum)
    plain = rate * torch.eye(n_dims).to(of_model)
    matrix = algorithms.fit(lambda p: loss(algorithms.preconditioned(problem, n_loops, p)), plain)
    strengths = torch.logspace(3, -5, steps, dtype=of_model.dtype, device=of_model.device)
    spread = torch.linalg.eigvals(matrix).abs()
    constants = (
        f"gradient descent: step {rate:.3g}; momentum: step {pair[0]:.3g}, decay {pair[1]:.3g}; preconditioner: "
        f"moduli of its eigenvalues {spread.min():.3g} to {spread.max():.3g}; ridge: strengths 1e3 to 1e-5"
    )
    return {
        "gradient descent, fitted step": partial(algorithms.gradient_descent, steps=steps, rate=rate),
        "gradient descent, best step": best_step,
        "gradient descent with momentum": partial(algorithms.momentum, steps=steps, rate=pair[0], decay=pair[1]),
        "preconditioned gradient descent": partial(algorithms.preconditioned, steps=steps, matrix=matrix),
        "Newton's iteration": partial(algorithms.newton, steps=steps),
        "conjugate gradients": partial(algorithms.conjugate_gradients, steps=min(steps, n_dims + 2)),
        SCALED: partial(algorithms.scaled, steps=steps),
        "ridge, ever weaker": partial(algorithms.ridge_path, strengths=strengths),
    }, constants


def induced_weights(model: Model, prompts: Prompts, batch: int = BATCH) -> Float[Tensor, "loop batch dim"]:
    """∂prediction/∂x at the query, after every iteration."""
    weights = []
    for xs, ys in prompts.split(batch):
        leaf = xs.clone().requires_grad_()
        with torch.enable_grad():
            read = model(leaf, ys)[..., -1]
            grads = [torch.autograd.grad(row.sum(), leaf, retain_graph=True)[0][:, -1] for row in read]
        weights.append(double(torch.stack(grads)))
    return torch.cat(weights, dim=1)


def _reader(model: LoopedTransformer, of_lens: Prompts, config: AlignConfig) -> Model:
    """Make a function from prompts to predictions: of a looped model after every loop, of others after every layer."""
    if model.cfg.n_loops > 1:
        return lambda xs, ys: model(xs, ys, config.loops)
    read = layer_readings(model, of_lens)
    return lambda xs, ys: read(Prompts(xs, ys))


def _predict(model: Model, prompts: Prompts, batch: int = BATCH) -> Float[Tensor, "loop batch point"]:
    with torch.no_grad():
        return torch.cat([double(model(xs, ys)) for xs, ys in prompts.split(batch)], dim=1)


PROBE = Probe(
    "align",
    AlignConfig,
    run,
    check,
    Shown(
        "align:align_figures",
        "algorithms:align_table",
        quantities=(Quantity("best_error_similarity", unit="cosine of the errors"),),
    ),
    needs=frozenset({"weights"}),
    of_points=True,
    given=("training",),
)
