"""Training: the windowed loss, the rates, one step, one loop. The run's folder and its bookkeeping are in ``runs``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from loopprobe.config import Config, TrainConfig
from loopprobe.errors import LoopprobeError
from loopprobe.model import LoopedTransformer
from loopprobe.runs import Row, Run, deferred_interrupt, recorded_config
from loopprobe.stack import Stack, Trial, muon_together
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
        torch.optim.AdamW(
            rest, lr=cfg.adam_lr, betas=cfg.betas, weight_decay=decay, fused=rest[0].device.type == "cuda" or None
        )
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
    return _loss(predictions, prompts, kind)


def _loss(predictions: Tensor, prompts: Prompts, kind: str) -> tuple[Tensor, Tensor, Tensor]:
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
    _prepare_update(model, optimizers, step, cfg)
    for optimizer in optimizers:
        optimizer.step()
    return squared, error


def _prepare_update(
    model: LoopedTransformer, optimizers: list[torch.optim.Optimizer], step: int, cfg: TrainConfig
) -> None:
    """Clip the gradient and set the rates."""
    if cfg.grad_clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate_factor(step, cfg)


def stack_step(stack: Stack, runs: Sequence[Run], prompts: list[Prompts], step: int) -> list[tuple[Tensor, Tensor]]:
    """``train_step`` of all models of a stack at once, equal to one by one within rounding."""
    loops = [run.train.loops.at(step, run.train.steps) for run in runs]
    windows = [min(run.train.loop_window, n_loops) for run, n_loops in zip(runs, loops, strict=True)]
    xs, ys = (torch.cat(parts) for parts in zip(*prompts, strict=True))
    with torch.autocast(xs.device.type, torch.bfloat16, enabled=runs[0].train.precision == "bfloat16"):
        predictions = stack.run_windows(xs, ys, loops, windows)
        parts = zip(predictions, prompts, runs, strict=True)
        losses = [_loss(own, part, run.train.loss) for own, part, run in parts]
    stack.zero_grad()
    torch.stack([loss for loss, *_ in losses]).sum().backward()
    stack.pass_gradients_on()
    muons = []
    for run in runs:
        _prepare_update(run.model, run.optimizers, step, run.train)
        for optimizer in run.optimizers:
            muons.append(optimizer) if isinstance(optimizer, torch.optim.Muon) else optimizer.step()
    muon_together(muons)
    return [(squared, error) for _, squared, error in losses]


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
    run = start(cfg, out, resume=resume, overwrite=overwrite, report=report)
    train_runs([run])
    return run.out


def start(
    cfg: Config | None,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Row], None] = lambda row: None,
) -> Run:
    """A run that is ready for its next step, as ``train`` begins or resumes it."""
    if resume:
        cfg = recorded_config(out, cfg)
    assert cfg is not None
    assert cfg.train is not None
    device = pick_device(cfg.train.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    generator = torch.Generator().manual_seed(cfg.train.seed)
    model = LoopedTransformer(cfg.model, generator).to(device)
    run = Run(out, cfg, model, make_optimizers(model, cfg.train), generator, report)
    run.restore() if resume else run.begin(overwrite)
    return run


def train_runs(runs: Sequence[Run], together: bool | None = True) -> None:
    """Train runs of equal shapes, steps and step to their end.

    Args:
        runs: from ``start``.
        together: as one stack (see ``loopprobe.stack``), or one by one; None: whichever a trial in their first steps
            finds faster.

    Raises:
        LoopprobeError: the loss of a run is no longer finite; the others were trained first.
        KeyboardInterrupt: at Ctrl-C, after the states of the last whole step were saved.
    """
    broken: dict[Run, LoopprobeError] = {}
    left, stack, trial = list(runs), _stack(runs), Trial(together)
    with deferred_interrupt() as interrupted:
        for step in range(left[0].step, left[0].train.steps):
            prompts = [draw(run, step) for run in left]
            with trial.step(left[0].device) as as_one:
                if stack is not None and as_one:
                    found = stack_step(stack, left, prompts, step)
                else:
                    pairs = zip(left, prompts, strict=True)
                    found = [train_step(run.model, run.optimizers, part, step, run.train) for run, part in pairs]
            for run, (squared, error) in zip(left, found, strict=True):
                dims, points = _lengths(run, step)
                try:
                    run.record(squared, error / run.cfg.task.scale(dims), dims, points)
                except LoopprobeError as reason:
                    broken[run] = reason
            whole = [run for run in left if run not in broken]
            if len(whole) < len(left):
                left, stack = whole, _stack(whole)
            if not left:
                break
            if interrupted():
                for run in left:
                    run.save_state()
                raise KeyboardInterrupt
    for run in left:
        run.finish()
    if broken:
        raise LoopprobeError("; ".join(map(str, broken.values())))


def _stack(runs: Sequence[Run]) -> Stack | None:
    return Stack([run.model for run in runs]) if len(runs) > 1 else None


def _lengths(run: Run, step: int) -> tuple[int, int]:
    return run.train.dims.at(step, run.train.steps), run.train.points.at(step, run.train.steps)


def draw(run: Run, step: int) -> Prompts:
    """The prompts of a run's step, on its device."""
    dims, points = _lengths(run, step)
    task, batch, width = run.cfg.task, run.train.batch_size, run.cfg.model.n_dims
    return sample(task, batch, points, width, run.generator, active_dims=dims).to(run.device)
