"""One update of the weights: the windowed loss, the rates and the optimisers, for a model or a stack of them."""

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

LOG_FLOOR = 1e-3  # of a squared error over ``Prompts.scale``: errors far below it weigh less


def rate_factor(step: int, cfg: TrainConfig) -> float:
    """Learning rate relative to its peak: linear warm-up, flat, linear decay to zero over the last part."""
    warm_up = min(1.0, (step + 1) / cfg.warmup_steps) if cfg.warmup_steps else 1.0
    left = (cfg.steps - step) / (cfg.decay * cfg.steps) if cfg.decay else 1.0
    return min(warm_up, left, 1.0)


def make_optimizers(model: LoopedTransformer, cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the block with Adam on the rest, or Adam on everything.

    Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Each group keeps its peak rate in
    ``peak_lr``; the loop scales it.
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
                group["lr"] = torch.tensor(group["lr"], device=device)  # a recorded step reads it anew
    return optimizers


def windowed_loss(
    model: LoopedTransformer, prompts: Prompts, n_loops: int, window: int, kind: str = "mse"
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss over all points and the last ``window`` loops, which alone carry gradient.

    mse: the mean squared error (Yang et al., arXiv 2311.12424, section 4.1: b loops, window T). log: the mean over
    loops and points of log(mean squared error of the prompts / scale + 0.001). That is the negative log likelihood of
    errors whose variance at each loop and point is what it is (Kendall et al., arXiv 1705.07115, with the variances
    solved for): points with few examples, whose error cannot fall, no longer drown those whose error can.

    Returns:
        The loss; the mean squared error, and the squared error at the query after the last loop (both detached).
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
    """One update of the weights.

    Args:
        model, optimizers: what is trained.
        prompts: what on.
        step: which of the training, for the schedules.
        cfg: the recipe.
        replay: of the steps of this model.

    Returns:
        The mean squared error, and that at the query after the last loop over ``Prompts.scale``; no device is waited
        for.
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
    """``train_step`` of all models of a stack at once, equal to one by one within rounding."""
    loops = [run.train.lengths(step)["loops"] for run in runs]
    windows = [min(run.train.loop_window, n_loops) for run, n_loops in zip(runs, loops, strict=True)]
    for run in runs:
        _set_rates(run.optimizers, step, run.train)

    def work(xs: Tensor, ys: Tensor) -> Tensor:
        with torch.autocast(xs.device.type, torch.bfloat16, enabled=runs[0].train.precision == "bfloat16"):
            predictions = stack.run_windows(xs, ys, loops, windows)
            parts = zip(predictions, ys.chunk(len(runs)), prompts, runs, strict=True)
            losses = [_loss(own, labels, part.scale, run.train.loss) for own, labels, part, run in parts]
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
