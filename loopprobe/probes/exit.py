"""Early exit: when to stop looping, prompt by prompt, and what it costs.

Rules of the field, each for several settings: stop when the state of the query's token moves less than a share of its
norm (0.03 in recurrent-depth models, arXiv 2502.05171), when the prediction moves less than a tolerance, or when it has
been the same for k loops; and where a model has a gate, when the probability that it has stopped, 1 − ∏ (1 − λ_t),
reaches a threshold (arXiv 2510.25741, section 3). Compared with stopping all prompts after the same number of loops.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import error_summary, stamp
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import require_looped
from loopprobe.store.evaluate import batches
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import at_least_single, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

RULES = ("state step", "prediction step", "same answer", "gate")


@configuration
class ExitConfig:
    """The rules and their settings.

    Attributes:
        loops: the most loops; a prompt whose rule never holds runs all of them.
        state_steps: relative, of the query's state.
        prediction_steps: of the answer at the query, in the unit of steps of the prompts.
        repeats: for how many loops the answer is the same, within ``same``.
        same: in the same unit.
        gates: the probability that the model's own gate has stopped; of models that have one.
    """

    loops: PositiveInt = 100
    state_steps: tuple[PositiveFloat, ...] = (0.3, 0.1, 0.06, 0.03, 0.01, 0.003)
    prediction_steps: tuple[PositiveFloat, ...] = (0.1, 0.03, 0.01, 0.003, 0.001)
    repeats: tuple[PositiveInt, ...] = (1, 2, 3, 5, 8)
    same: PositiveFloat = 0.01
    gates: tuple[PositiveFloat, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)


def run(
    subject: Subject, prompts: PromptBatch, config: ExitConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Measure the loops that every rule uses and the error that it makes.

    Returns:
        A dataset with dims ``rule_setting``, ``loop`` (from 1) and ``example``:

        * ``loops_used [rule_setting, example]``, ``error [rule_setting, example]`` (at the query)
        * ``mean_loops [rule_setting]``; ``median``, ``failures [rule_setting]`` with ``_low`` and ``_high``, and
          ``mean [rule_setting]`` of the error: see ``error_summary``
        * ``budget_median [loop]`` …: the same when all prompts stop after that loop
        * coordinates ``rule`` and ``setting [rule_setting]``
    """
    check(subject, config, prompts)
    model = subject.model
    prompts = prompts.to(subject.device)
    has_gate = "gate" in model.supports
    labels, used, errors, budget = _settings(config, has_gate), [], [], []
    names = ["hook_z", *(["hook_gate"] if has_gate else [])]
    for batch in progress(batches(model, prompts, config.loops)):
        outputs, cache = model.run_with_cache(
            *batch.inputs, n_loops=config.loops, read_at=batch.read_at, names=names, positions=[prompts.query]
        )
        z, move = at_least_single(cache.stack("z")[:, :, 0]), batch.step(outputs[1:], outputs[:-1])[..., -1]
        error = batch.errors(outputs)[..., -1]
        held = _holding(config, z, move)
        held += _gated(config, cache.stack("gate")[:, :, 0]) if has_gate else []
        stops = [_first(holds, config.loops) for holds in held]
        used.append(torch.stack(stops).cpu())
        errors.append(torch.stack([error.gather(0, stop[None] - 1)[0] for stop in stops]).cpu())
        budget.append(error.cpu())
    loops_used, error_made, by_budget = (to_numpy(torch.cat(parts, -1)) for parts in (used, errors, budget))
    data = xr.Dataset(
        {
            "loops_used": (("rule_setting", "example"), loops_used),
            "error": (("rule_setting", "example"), error_made),
            "mean_loops": ("rule_setting", loops_used.mean(1)),
            **error_summary(("rule_setting",), error_made, prompts.failure_level),
            **error_summary(("loop",), by_budget, prompts.failure_level, "budget_"),
        },
        coords={
            "rule": ("rule_setting", [rule for rule, _ in labels]),
            "setting": ("rule_setting", [float(setting) for _, setting in labels]),
            "loop": np.arange(1, config.loops + 1),
            "model": subject.label,
        },
    )
    return stamp(data, "exit", subject, prompts, config)


def check(subject: Subject, config: ExitConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where the model has no loop to stop, or no rule has a setting."""
    require_looped(subject)
    if config.loops < 2 or not (config.state_steps or config.prediction_steps or config.repeats):
        raise LoopprobeError(f"loops ({config.loops}) must be at least 2, with a setting of a rule: raise it")


def _settings(config: ExitConfig, has_gate: bool) -> list[tuple[str, float | int]]:
    settings = (config.state_steps, config.prediction_steps, config.repeats, config.gates if has_gate else ())
    groups = zip(RULES, settings, strict=True)
    return [(rule, setting) for rule, settings in groups for setting in settings]


def _holding(
    config: ExitConfig, z: Float[Tensor, "loop batch d_model"], move: Float[Tensor, "later_loop batch"]
) -> list[Bool[Tensor, "loop batch"]]:
    """Test each rule after each loop; no rule holds after the first."""
    never = torch.zeros_like(move[:1], dtype=torch.bool)
    step = (z[1:] - z[:-1]).norm(dim=-1) / z[1:].norm(dim=-1)
    held = [torch.cat([never, step <= setting]) for setting in config.state_steps]
    held += [torch.cat([never, move <= setting]) for setting in config.prediction_steps]
    same = torch.cat([never, move <= config.same]).int()
    runs = torch.zeros_like(same)  # for how many loops the answer has been the same
    for loop in range(1, len(same)):
        runs[loop] = (runs[loop - 1] + 1) * same[loop]
    return [*held, *(runs >= k for k in config.repeats)]


def _gated(config: ExitConfig, logits: Float[Tensor, "loop batch 1"]) -> list[Bool[Tensor, "loop batch"]]:
    """Test after each loop whether the probability to have stopped has come to each threshold."""
    goes_on = (1 - at_least_single(logits)[..., 0].sigmoid()).cumprod(0)
    return [1 - goes_on >= threshold for threshold in config.gates]


def _first(holds: Bool[Tensor, "loop batch"], most: int) -> Tensor:
    """Count the loops until the rule first holds, or all of them."""
    return torch.where(holds.any(0), holds.int().argmax(0) + 1, most)


PROBE = Probe(
    "exit",
    ExitConfig,
    run,
    check,
    Shown(
        "longrun:exit_figures",
        "inside:exit_table",
        quantities=(Quantity("median", "error", along=("rule_setting",), log=True),),
    ),
    needs=frozenset({"map"}),
)
