"""Training: the windowed loss, the rates, one step, one loop. The run's folder and its bookkeeping are in ``runs``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.config import Config, TrainConfig
from loopprobe.errors import LoopprobeError
from loopprobe.model import LoopedTransformer
from loopprobe.replay import Replay
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
    loops and points of log(mean squared error of the prompts / E(y²) + 0.001). That is the negative log likelihood of
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
        The mean squared error, and that at the query after the last loop in units of E(y²); no device is waited for.
    """
    n_loops = cfg.loops.at(step, cfg.steps)
    _set_rates(optimizers, step, cfg)

    def work(xs: Tensor, ys: Tensor) -> Tensor:
        part = dataclasses.replace(prompts, xs=xs, ys=ys)
        with torch.autocast(xs.device.type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
            loss, squared, error = windowed_loss(model, part, n_loops, cfg.loop_window, cfg.loss)
        model.zero_grad()
        loss.backward()
        _clip(model, cfg)
        for optimizer in optimizers:
            if isinstance(optimizer, torch.optim.Muon) and xs.is_cuda:
                muon_together([optimizer])  # torch's own reads its rate back from the device
            else:
                optimizer.step()
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


def _clip(model: LoopedTransformer, cfg: TrainConfig) -> None:
    if cfg.grad_clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)


def stack_step(
    stack: Stack, runs: Sequence[Run], prompts: list[Prompts], step: int, replay: Replay
) -> Float[Tensor, "run 2"]:
    """``train_step`` of all models of a stack at once, equal to one by one within rounding."""
    loops = [run.train.loops.at(step, run.train.steps) for run in runs]
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
        muons = []
        for run in runs:
            _clip(run.model, run.train)
            for optimizer in run.optimizers:
                muons.append(optimizer) if isinstance(optimizer, torch.optim.Muon) else optimizer.step()
        muon_together(muons)
        pairs = zip(losses, prompts, strict=True)
        return torch.stack([torch.stack([squared, error / part.scale]) for (_, squared, error), part in pairs])

    xs, ys = (torch.cat(parts) for parts in zip(*prompts, strict=True))
    return replay((*loops, *(part.scale for part in prompts)), work, xs, ys)


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
    left, ways, trial = list(runs), _ways(runs), Trial(together)
    with deferred_interrupt() as interrupted:
        for step in range(left[0].step, left[0].train.steps):
            prompts = [draw(run, step) for run in left]
            with trial.step(left[0].device) as as_one:
                found = ways[as_one and len(left) > 1](prompts, step)
            for run, errors in zip(left, found, strict=True):
                try:
                    run.record(errors, *_lengths(run, step))
                except LoopprobeError as reason:
                    broken[run] = reason
            whole = [run for run in left if run not in broken]
            if len(whole) < len(left):
                left, ways = whole, _ways(whole)
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


def _ways(runs: Sequence[Run]) -> dict[bool, Callable[[list[Prompts], int], list[Tensor]]]:
    """A step of all runs: as one stack where that is asked for (True), or one by one."""
    replays = [Replay(run.device) for run in runs]

    def one_by_one(prompts: list[Prompts], step: int) -> list[Tensor]:
        each = zip(runs, prompts, replays, strict=True)
        return [train_step(run.model, run.optimizers, part, step, run.train, replay) for run, part, replay in each]

    ways: dict[bool, Callable[[list[Prompts], int], list[Tensor]]] = {False: one_by_one}
    if len(runs) > 1:
        stack, replay = Stack([run.model for run in runs]), Replay(runs[0].device)
        ways[True] = lambda prompts, step: list(stack_step(stack, runs, prompts, step, replay))
    return ways


def _lengths(run: Run, step: int) -> tuple[int, int]:
    return run.train.dims.at(step, run.train.steps), run.train.points.at(step, run.train.steps)


def draw(run: Run, step: int) -> Prompts:
    """The prompts of a run's step, on its device."""
    dims, points = _lengths(run, step)
    task, batch, width = run.cfg.task, run.train.batch_size, run.cfg.model.n_dims
    prompts = sample(task, batch, points, width, run.generator, active_dims=dims)
    if run.device.type != "cuda":
        return prompts.to(run.device)
    xs, ys = (part.pin_memory().to(run.device, non_blocking=True) for part in prompts)  # waits for no earlier step
    return dataclasses.replace(prompts, xs=xs, ys=ys, weights=None)
