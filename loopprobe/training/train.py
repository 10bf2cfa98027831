"""Training runs from start to end. One step is in ``steps``, and the folder of a run in ``runs``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loopprobe.config.budget import require_training
from loopprobe.config.schema import Config
from loopprobe.config.sources import with_task
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.support.device import pick_device
from loopprobe.tasks import PromptBatch, Prompts, TokenPrompts, register_task, sample, sample_tokens
from loopprobe.tasks.registry import task_config
from loopprobe.training.replay import Replay
from loopprobe.training.runs import Row, Run, deferred_interrupt, recorded_config
from loopprobe.training.stack import Stack, Trial
from loopprobe.training.steps import make_optimizers, stack_step, train_step


def train(
    cfg: Config | None,
    out: Path | str,
    *,
    task: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[[Row], None] = lambda row: None,
) -> Path:
    """Train a model into the folder ``out``: config.json, metrics.jsonl, model.safetensors.

    Args:
        cfg: the configuration; with ``resume``, None or the configuration of the run; with ``task``, None stands for
            the defaults.
        out: the folder of the run.
        task: the task instead of that of ``cfg``: a class of ``RegressionTask`` or ``TokenTask`` or an instance of one,
            a function that draws xs and ys, ``file.py:Name``, ``package.module:Name``, or a ``TaskConfig``.
        resume: True resumes from the last state in ``out``.
        overwrite: True empties ``out`` first.
        report: a function that is called with each row of metrics.

    Returns:
        ``out``, which ``load_checkpoint`` takes.

    Raises:
        LoopprobeError: ``out`` exists (or does not, to resume), or the loss is no longer finite.
        KeyboardInterrupt: at Ctrl-C, after the state of the last whole step was saved.
    """
    if task is not None and cfg is None and resume:
        register_task(task)
    elif task is not None:
        cfg = with_task(cfg, task_config(task))
    run = start(cfg, Path(out), resume=resume, overwrite=overwrite, report=report)
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
    """Begin or resume a run as ``train`` does, and return it ready for its next step."""
    if resume:
        cfg = recorded_config(out, cfg)
    elif cfg is None:
        raise LoopprobeError("there is no configuration: give one, or resume a run that has its own")
    device = pick_device(cfg.train.device)
    require_training(cfg, device)
    if cfg.task.sha256 is not None:  # a task of one's own shows its mistakes before a folder is made
        for step in (0, cfg.train.steps - 1):
            draw(cfg, cfg.train.reached(step), torch.Generator().manual_seed(cfg.train.seed), torch.device("cpu"))
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
        runs: the runs, made by ``start``.
        together: True trains them as one stack (see ``training.stack``), and False one by one. None chooses the way
            that a trial in their first steps finds faster.

    Raises:
        LoopprobeError: the runs stand at different steps; or the loss of one is no longer finite, and the others were
            trained first.
        KeyboardInterrupt: at Ctrl-C, after the states of the last whole step were saved.
    """
    try:
        if len(steps := sorted({run.step for run in runs})) > 1:
            raise LoopprobeError(f"the runs stand at steps {', '.join(map(str, steps))}: train those of one step")
        _train_to_the_end(runs, together)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        saved = runs[0].saved_at
        for run in runs:
            run.abandon()
        train = runs[0].train
        raise LoopprobeError(
            f"a step of {train.batch_size} prompts and {train.loop_window} loops with gradient does not fit into the "
            f"memory of {runs[0].device} ({'nothing was written' if not saved else f'step {saved} is saved'}): lower "
            "train.batch_size, train.loop_window or the model's size"
        ) from None
    finally:
        for run in runs:
            run.close()


def _is_out_of_memory(error: BaseException) -> bool:
    texts = "not enough memory", "can't allocate", "cannot allocate", "out of memory", "invalid buffer size"
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error).lower() for text in texts)


def _train_to_the_end(runs: Sequence[Run], together: bool | None) -> None:
    broken: dict[Run, LoopprobeError] = {}
    left, ways, trial = list(runs), _ways(runs), Trial(together)
    with deferred_interrupt() as interrupted:
        for step in range(left[0].step, left[0].train.steps):
            sizes = [run.sizes(step) for run in left]
            each = zip(left, sizes, strict=True)
            prompts = [draw(run.cfg, size, run.generator, run.device) for run, size in each]
            # runs may have mastered different lengths, or be of tasks that answer at other tokens
            alike = len({(part.n_tokens, part.n_answers, str(part.read_at)) for part in prompts}) == 1
            with trial.step(left[0].device) as as_one:
                way = ways[as_one and alike and len(left) > 1]
                results = way(prompts, step, [size["loops"] for size in sizes])
            for run, errors in zip(left, results, strict=True):
                try:
                    run.record(errors)
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


def _ways(runs: Sequence[Run]) -> dict[bool, Callable[[list[PromptBatch], int, list[int]], list[Tensor]]]:
    """Return the ways to do a step of all runs: as one stack (True), and one by one (False)."""
    replays = [Replay(run.device) for run in runs]

    def one_by_one(prompts: list[PromptBatch], step: int, loops: list[int]) -> list[Tensor]:
        each = zip(runs, prompts, replays, loops, strict=True)
        return [
            train_step(run.model, run.optimizers, part, step, run.train, replay, n_loops)
            for run, part, replay, n_loops in each
        ]

    ways: dict[bool, Callable[[list[PromptBatch], int, list[int]], list[Tensor]]] = {False: one_by_one}
    if len(runs) > 1:
        stack, replay = Stack([run.model for run in runs]), Replay(runs[0].device)
        ways[True] = lambda prompts, step, loops: list(stack_step(stack, runs, prompts, step, replay, loops))
    return ways


def draw(cfg: Config, sizes: Mapping[str, int], generator: torch.Generator, device: torch.device) -> PromptBatch:
    """Draw the prompts of a training step of these sizes, on a device."""
    size = cfg.train.batch_size
    prompts: Prompts | TokenPrompts
    if cfg.task.reads_tokens:
        prompts = sample_tokens(cfg.task, size, sizes["length"], generator)
    else:
        prompts = sample(cfg.task, size, sizes["points"], cfg.model.n_dims, generator, active_dims=sizes["dims"])
    if device.type != "cuda":
        return prompts.to(device)
    # from pinned memory, so that nothing waits for earlier steps
    return prompts.of(*(part.pin_memory().to(device, non_blocking=True) for part in prompts.tensors))
