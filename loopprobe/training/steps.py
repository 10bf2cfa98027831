"""One update of the weights, for a model or a stack of models: the windowed loss, the rates and the optimisers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.config.schema import TrainConfig
from loopprobe.model.looped import LoopedTransformer
from loopprobe.tasks import PromptBatch
from loopprobe.training.replay import Replay
from loopprobe.training.runs import Run
from loopprobe.training.stack import Stack, muon_together


def rate_factor(step: int, cfg: TrainConfig) -> float:
    """Return the learning rate relative to its peak: a linear warm-up, a flat part, and a linear decay to zero."""
    warm_up = min(1.0, (step + 1) / cfg.warmup_steps) if cfg.warmup_steps else 1.0
    left = (cfg.steps - step) / (cfg.decay * cfg.steps) if cfg.decay else 1.0
    return min(warm_up, left, 1.0)


def make_optimizers(model: LoopedTransformer, cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of the block and Adam for the rest, or Adam for everything.

    Muon is due to Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Each group holds its peak rate in
    ``peak_lr``, which the training loop scales.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2] if cfg.optimizer == "muon" else []
    chosen = {id(p) for p in matrices}
    decay = 0.0 if matrices else cfg.weight_decay
    rest = [p for p in model.parameters() if id(p) not in chosen]
    device = rest[0].device
    on_gpu = True if device.type == "cuda" else None
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            rest, lr=cfg.adam_lr, betas=cfg.betas, weight_decay=decay, fused=on_gpu, capturable=bool(on_gpu)
        )
    ]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=cfg.muon_lr, weight_decay=cfg.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
            if on_gpu:
                group["lr"] = torch.tensor(group["lr"], device=device)  # a recorded step reads the current value
    return optimizers


def windowed_loss(
    model: LoopedTransformer, prompts: PromptBatch, n_loops: int, window: int, kind: str, loss_loops: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the loss over all answers and the last ``window`` loops, which alone carry gradient.

    After Yang et al., arXiv 2311.12424, section 4.1: b loops, window T. With ``loss_loops`` only as many of the last
    loops are in the loss.

    Returns:
        The loss, and what ``PromptBatch.training_loss`` records of it, detached.
    """
    window = min(window, n_loops)
    outputs = model.run_loops(
        *prompts.inputs,
        n_loops=n_loops,
        keep_loops=min(window, loss_loops or window),
        grad_loops=window,
        read_at=prompts.read_at,
    )
    return prompts.training_loss(outputs, kind)


def train_step(
    model: LoopedTransformer,
    optimizers: list[torch.optim.Optimizer],
    prompts: PromptBatch,
    step: int,
    cfg: TrainConfig,
    replay: Replay,
    n_loops: int | None = None,
) -> Float[Tensor, " measure"]:
    """Update the weights once.

    Args:
        model, optimizers: the model and its optimisers.
        prompts: the prompts of this step.
        step: the number of the step, for the schedules.
        cfg: the training configuration.
        replay: the recorder of this model's steps.
        n_loops: of this step; None: as the schedule has it.

    Returns:
        What the prompts record of a step (``PromptBatch.measures``). The call does not wait for the device.
    """
    n_loops = cfg.sizes(step)["loops"] if n_loops is None else n_loops
    _set_rates(optimizers, step, cfg)

    def work(*tensors: Tensor) -> Tensor:
        part, device = prompts.of(*tensors), tensors[0].device
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
            loss, recorded = windowed_loss(model, part, n_loops, cfg.loop_window, str(cfg.loss), cfg.loss_loops)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        _clip(optimizers, cfg)
        _update(optimizers, together=device.type == "cuda")  # torch's own Muon reads its rate back from the device
        return recorded

    return replay((n_loops, getattr(prompts, "scale", None), str(prompts.read_at)), work, *prompts.tensors)


def _set_rates(optimizers: list[torch.optim.Optimizer], step: int, cfg: TrainConfig) -> None:
    factor = rate_factor(step, cfg)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["peak_lr"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _clip(optimizers: Sequence[torch.optim.Optimizer], cfg: TrainConfig) -> None:
    if cfg.grad_clip:  # model.parameters() would search the hook points of every loop
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)


def _update(optimizers: list[torch.optim.Optimizer], together: bool) -> None:
    muons = [optimizer for optimizer in optimizers if together and isinstance(optimizer, torch.optim.Muon)]
    for optimizer in optimizers:
        if optimizer not in muons:
            optimizer.step()
    muon_together(muons)


def stack_step(
    stack: Stack,
    runs: Sequence[Run],
    prompts: list[PromptBatch],
    step: int,
    replay: Replay,
    n_loops: Sequence[int] | None = None,
) -> Float[Tensor, "run measure"]:
    """Do ``train_step`` for all models of a stack at once; the result is that of single steps within rounding."""
    loops = [run.train.sizes(step)["loops"] for run in runs] if n_loops is None else list(n_loops)
    windows = [min(run.train.loop_window, count) for run, count in zip(runs, loops, strict=True)]
    for run in runs:
        _set_rates(run.optimizers, step, run.train)
    n_inputs = len(prompts[0].inputs)

    def work(*tensors: Tensor) -> Tensor:
        parts = zip(*(tensor.chunk(len(runs)) for tensor in tensors), strict=True)
        each = [of_run.of(*part) for of_run, part in zip(prompts, parts, strict=True)]
        with torch.autocast(tensors[0].device.type, torch.bfloat16, enabled=runs[0].train.precision == "bfloat16"):
            outputs = stack.run_windows(tensors[:n_inputs], loops, windows, prompts[0].read_at)
            results = [
                of_run.training_loss(output[-(run.train.loss_loops or 0) :], str(run.train.loss))
                for of_run, output, run in zip(each, outputs, runs, strict=True)
            ]
        stack.zero_grad()
        torch.stack([loss for loss, _ in results]).sum().backward()
        stack.pass_gradients_on()
        for run in runs:
            _clip(run.optimizers, run.train)
        _update([optimizer for run in runs for optimizer in run.optimizers], together=True)
        return torch.stack([recorded for _, recorded in results])

    tensors = [torch.cat(parts) for parts in zip(*(part.tensors for part in prompts), strict=True)]
    scales = (getattr(part, "scale", None) for part in prompts)
    return replay((*loops, *scales, str(prompts[0].read_at)), work, *tensors)
