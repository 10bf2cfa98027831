"""Training: the windowed loss, the rates, one step, one loop. The run's folder and its bookkeeping are in ``runs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from loopprobe.config import Config, TrainConfig
from loopprobe.errors import LoopprobeError
from loopprobe.model import LoopedTransformer
from loopprobe.runs import Row, Run, deferred_interrupt, recorded_config
from loopprobe.tasks import Prompts, sample

LOG_FLOOR = 1e-3  # of E(y²): errors far below it weigh less


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA, else MPS, else CPU; anything else is a torch device that must be there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise LoopprobeError(f"device {name!r} is not available here: use auto or cpu") from None
    return device


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
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=cfg.adam_lr, betas=cfg.betas, weight_decay=decay)
    ]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=cfg.muon_lr, weight_decay=cfg.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def windowed_loss(
    model: LoopedTransformer, prompts: Prompts, n_loops: int, window: int, kind: str = "mse"
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss over all points and the last ``window`` loops, which alone carry gradient.

    mse: the mean squared error (Yang et al., arXiv 2311.12424, section 4.1: b loops, window T). log: the mean over
    loops and points of log(mean squared error of the prompts / E(y²) + 0.001). That is the negative log likelihood of
    errors whose variance at each loop and point is what it is (Kendall et al., arXiv 1705.07115, with the variances
    solved for): points with few examples, whose error cannot fall, no longer drown those whose error can.

    Returns:
        The loss; the mean squared error, and the squared error at the query after the last loop (both detached).
    """
    window = min(window, n_loops)
    predictions = model.run_loops(prompts.xs, prompts.ys, n_loops, keep_loops=window, grad_loops=window)
    errors = (predictions - prompts.ys).square()
    squared = errors.mean()
    loss = squared if kind == "mse" else (errors.mean(1) / prompts.scale + LOG_FLOOR).log().mean()
    return loss, squared.detach(), errors[-1, :, -1].detach().mean()


def train_step(
    model: LoopedTransformer,
    optimizers: list[torch.optim.Optimizer],
    prompts: Prompts,
    step: int,
    cfg: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """One update of the weights; returns squared errors, mean and at the query, as tensors: no device is waited for."""
    device = prompts.xs.device
    n_loops = cfg.loops.at(step, cfg.steps)
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
        loss, squared, error = windowed_loss(model, prompts, n_loops, cfg.loop_window, cfg.loss)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    if cfg.grad_clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate_factor(step, cfg)
        optimizer.step()
    return squared, error


def train(
    cfg: Config | None,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Row], None] = lambda row: None,
) -> Path:
    """Train a model into the folder ``out``: config.json, metrics.jsonl, model.safetensors.

    Args:
        cfg: the configuration; with ``resume``, None or the run's own.
        out: the run's folder.
        resume: go on from the last state in ``out``.
        overwrite: empty ``out`` first.
        report: called with each row of metrics.

    Returns:
        ``out``.

    Raises:
        LoopprobeError: ``out`` exists (or does not, to resume), or the loss is no longer finite.
        KeyboardInterrupt: at Ctrl-C, after the state of the last whole step was saved.
    """
    if resume:
        cfg = recorded_config(out, cfg)
    assert cfg is not None
    assert cfg.train is not None
    device = pick_device(cfg.train.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    generator = torch.Generator().manual_seed(cfg.train.seed)
    model = LoopedTransformer(cfg.model, generator).to(device)
    optimizers = make_optimizers(model, cfg.train)
    run = Run(out, cfg, model, optimizers, generator, report)
    run.restore() if resume else run.begin(overwrite)

    steps = cfg.train.steps
    with deferred_interrupt() as interrupted:
        for step in range(run.step, steps):
            dims, points = cfg.train.dims.at(step, steps), cfg.train.points.at(step, steps)
            prompts = sample(cfg.task, cfg.train.batch_size, points, cfg.model.n_dims, generator, active_dims=dims).to(
                device
            )
            squared, error = train_step(model, optimizers, prompts, step, cfg.train)
            run.record(squared, error / cfg.task.scale(dims), dims, points)
            if interrupted():
                run.save_state()
                raise KeyboardInterrupt
    return run.finish()
