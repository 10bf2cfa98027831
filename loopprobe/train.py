"""Training: schedules, the windowed loss, one step, one loop.

A run is a folder. ``state.safetensors`` holds everything that the next step depends on (weights, optimiser
state, the generator), so a run that was killed at any moment goes on from it and ends with the same weights,
bit for bit, as one that was never killed.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopprobe.checkpoint import METRICS, Checkpoint, read_json, read_state, remove_state, save, save_state
from loopprobe.config import Config, TrainConfig
from loopprobe.errors import LoopprobeError
from loopprobe.evaluate import evaluate
from loopprobe.model import LoopedTransformer
from loopprobe.provenance import provenance
from loopprobe.storage import new_folder
from loopprobe.tasks import Prompts, sample

Row = dict[str, float | int]


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


def windowed_loss(model: LoopedTransformer, prompts: Prompts, n_loops: int, window: int) -> tuple[Tensor, Tensor]:
    """Mean squared error over all points and the last ``window`` loops, which alone carry gradient.

    Yang et al., arXiv 2311.12424, section 4.1 (b loops, window T).

    Returns:
        The loss, and the squared error at the query after the last loop (detached).
    """
    window = min(window, n_loops)
    predictions = model.run_loops(prompts.xs, prompts.ys, n_loops, keep_loops=window, grad_loops=window)
    errors = (predictions - prompts.ys).square()
    return errors.mean(), errors[-1, :, -1].detach().mean()


def train_step(
    model: LoopedTransformer,
    optimizers: list[torch.optim.Optimizer],
    prompts: Prompts,
    step: int,
    cfg: TrainConfig,
) -> tuple[Tensor, Tensor]:
    """One update of the weights; returns loss and query error as tensors, so that nothing waits for a device."""
    device = prompts.xs.device
    n_loops = cfg.loops.at(step, cfg.steps)
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
        loss, error = windowed_loss(model, prompts, n_loops, cfg.loop_window)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    if cfg.grad_clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate_factor(step, cfg)
        optimizer.step()
    return loss.detach(), error


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
        cfg = _recorded_config(out, cfg)
    assert cfg is not None
    assert cfg.train is not None
    device = pick_device(cfg.train.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    generator = torch.Generator().manual_seed(cfg.train.seed)
    model = LoopedTransformer(cfg.model, generator).to(device)
    optimizers = make_optimizers(model, cfg.train)
    run = _Run(out, cfg, model, optimizers, generator, report)
    run.restore() if resume else run.begin(overwrite)

    steps = cfg.train.steps
    with _deferred_interrupt() as interrupted:
        for step in range(run.step, steps):
            dims, points = cfg.train.dims.at(step, steps), cfg.train.points.at(step, steps)
            prompts = sample(cfg.task, cfg.train.batch_size, points, cfg.model.n_dims, generator, active_dims=dims).to(
                device
            )
            loss, error = train_step(model, optimizers, prompts, step, cfg.train)
            run.record(loss, error / dims, dims, points)
            if interrupted():
                run.save_state()
                raise KeyboardInterrupt
    return run.finish()


def _recorded_config(out: Path, given: Config | None) -> Config:
    """The run's own configuration; one that was given must be equal to it."""
    recorded = read_json(out)[0]
    if recorded.train is None or given not in (None, recorded):
        raise LoopprobeError(
            f"the configuration differs from that of {out}: resume without options, or train anew with another --out"
        )
    return recorded


class _Run:
    """The run's folder and its bookkeeping: what has been measured, what has been saved."""

    def __init__(
        self,
        out: Path,
        cfg: Config,
        model: LoopedTransformer,
        optimizers: list[torch.optim.Optimizer],
        generator: torch.Generator,
        report: Callable[[Row], None],
    ) -> None:
        assert cfg.train is not None
        self.out, self.cfg, self.train, self.model, self.optimizers = out, cfg, cfg.train, model, optimizers
        self.generator, self.report = generator, report
        self.provenance = provenance(next(model.parameters()).device, torch.float32)  # of the code that trains
        self.step = 0
        self.seconds = 0.0  # of the run's earlier lives
        self.started = time.monotonic()
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.saved_at = 0
        self.lengths: dict[str, int] = {}

    def begin(self, overwrite: bool) -> None:
        new_folder(self.out, overwrite)
        (self.out / METRICS).touch()
        self.save_state()

    def restore(self) -> None:
        state = read_state(self.out, self.model, self.optimizers, self.generator)
        if state is None:
            raise LoopprobeError(f"{self.out} holds no unfinished run: nothing to resume")
        self.step, self.seconds = state
        self.saved_at = self.step
        rows = [json.loads(line) for line in _whole_lines(self.out / METRICS)]
        kept = [row for row in rows if row["step"] <= self.step]
        (self.out / METRICS).write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.cfg, self.model, self.step, round(self.elapsed(), 1), provenance=self.provenance)

    def record(self, loss: Tensor, error: Tensor, dims: int, points: int) -> None:
        """Note one step; read the numbers and save the state when it is time."""
        train = self.train
        self.step += 1
        self.pending.append((loss, error))
        self.lengths = {"dims": dims, "points": points, "loops": train.loops.at(self.step - 1, train.steps)}
        if self.step % train.checkpoint_every == 0:
            self.save_state()
        elif self.step % train.log_every == 0 or self.step == train.steps:
            self.log()

    def log(self) -> None:
        """Write the mean of the steps since the last row; stop where a loss is not finite."""
        losses, errors = torch.tensor(self.pending).unbind(1)
        if not losses.isfinite().all():
            first = int((~losses.isfinite()).nonzero()[0, 0])
            raise LoopprobeError(
                f"the loss became {losses[first].item()} at step {self.step - len(losses) + first + 1} (last good "
                f"checkpoint: step {self.saved_at}, in {self.out}): lower train.muon_lr or train.adam_lr, "
                "lengthen train.warmup_steps, or lower train.grad_clip"
            )
        row: Row = {"step": self.step, "loss": losses.mean().item(), "error": errors.mean().item()}
        row |= self.lengths | {"seconds": round(self.elapsed(), 2)}
        self.pending.clear()
        with (self.out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.report(row)

    def save_state(self) -> None:
        """Write the checkpoint and all that the next step depends on."""
        if self.pending:
            self.log()
        save(self.checkpoint(), self.out)
        save_state(self.out, self.model, self.optimizers, self.generator, self.step, self.elapsed())
        self.saved_at = self.step

    def finish(self) -> Path:
        """Evaluate, write the final checkpoint and drop the training state."""
        final = self.checkpoint()
        final.evaluation = evaluate(final)
        save(final, self.out)
        remove_state(self.out)
        return self.out


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file that end in a newline: a killed run may leave half of one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted and obeyed between steps; a second one interrupts at once."""
    noted = False

    def note(signum: int, frame: Any) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: the default handling stays
        yield lambda: False
        return
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, previous)
