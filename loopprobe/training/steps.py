"""One update of the weights, for a model or a stack of models: the windowed loss, the rates and the optimisers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.config.schema import TrainConfig
from loopprobe.model.looped import LoopedTransformer
from loopprobe.tasks import Prompts
from loopprobe.training.replay import Replay
from loopprobe.training.runs import Run
from loopprobe.training.stack import Stack, muon_together

LOG_FLOOR = 1e-3  # added to a squared error over ``Prompts.scale``: errors far below it weigh less


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
    model: LoopedTransformer, prompts: Prompts, n_loops: int, window: int, kind: str = "mse"
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss over all points and the last ``window`` loops, which alone carry gradient.

    The loss ``mse`` is the mean squared error (Yang et al., arXiv 2311.12424, section 4.1: b loops, window T). The loss
    ``log`` is the mean over loops and points of log(mean squared error of the prompts / scale + 0.001). It is the
    negative log likelihood of errors with a variance for each loop and point, at the best variances (Kendall et al.,
    arXiv 1705.07115). Points with few examples, whose error cannot fall, then do not drown the points whose error can.

    Returns:
        The loss, the mean squared error, and the squared error at the query after the last loop; the last two are
        detached.
    """
    window = min(window, n_loops)
    predictions = model.run_loops(prompts.xs, prompts.ys, n_loops, keep_loops=window, grad_loops=window)
    return _loss(predictions, prompts.ys, prompts.scale, kind)


def _loss(predictions: Tensor, ys: Tensor, scale: float, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    errors = (predictions - ys).square()
    squared = errors.mean()
    loss = squared if kind == "mse" else (errors.mean(1) / scale + LOG_FLOOR).log().mean()
    return loss, squared.detach(), errors[-1, :, -1].detach().mean()


def train_step(
    model: LoopedTransformer,
    optimizers: list[torch.optim.Optimizer],
    prompts: Prompts,
    step: int,
    cfg: TrainConfig,
    replay: Replay,
) -> Float[Tensor, 2]:
    """Update the weights once.

    Args:
        model, optimizers: the model and its optimisers.
        prompts: the prompts of this step.
        step: the number of the step, for the schedules.
        cfg: the training configuration.
        replay: the recorder of this model's steps.

    Returns:
        The mean squared error, and the squared error at the query after the last loop over ``Prompts.scale``. The call
        does not wait for the device.
    """
    n_loops = cfg.lengths(step)["loops"]
    _set_rates(optimizers, step, cfg)

    def work(xs: Tensor, ys: Tensor) -> Tensor:
        part = dataclasses.replace(prompts, xs=xs, ys=ys)
        with torch.autocast(xs.device.type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
            loss, squared, error = windowed_loss(model, part, n_loops, cfg.loop_window, cfg.loss)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        _clip(optimizers, cfg)
        _update(optimizers, together=xs.is_cuda)  # torch's own Muon reads its rate back from the device
        return torch.stack([squared, error / prompts.scale])

    return replay((n_loops, prompts.scale), work, *prompts)


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
    stack: Stack, runs: Sequence[Run], prompts: list[Prompts], step: int, replay: Replay
) -> Float[Tensor, "run 2"]:
    """Do ``train_step`` for all models of a stack at once; the result is that of single steps within rounding."""
    loops = [run.train.lengths(step)["loops"] for run in runs]
    windows = [min(run.train.loop_window, n_loops) for run, n_loops in zip(runs, loops, strict=True)]
    for run in runs:
        _set_rates(run.optimizers, step, run.train)

    def work(xs: Tensor, ys: Tensor) -> Tensor:
        with torch.autocast(xs.device.type, torch.bfloat16, enabled=runs[0].train.precision == "bfloat16"):
            predictions = stack.run_windows(xs, ys, loops, windows)
            parts = zip(predictions, ys.chunk(len(runs)), prompts, runs, strict=True)
            losses = [_loss(outputs, labels, part.scale, run.train.loss) for outputs, labels, part, run in parts]
        stack.zero_grad()
        torch.stack([loss for loss, *_ in losses]).sum().backward()
        stack.pass_gradients_on()
        for run in runs:
            _clip(run.optimizers, run.train)
        _update([optimizer for run in runs for optimizer in run.optimizers], together=True)
        pairs = zip(losses, prompts, strict=True)
        return torch.stack([torch.stack([squared, error / part.scale]) for (_, squared, error), part in pairs])

    xs, ys = (torch.cat(parts) for parts in zip(*prompts, strict=True))
    return replay((*loops, *(part.scale for part in prompts)), work, xs, ys)
