"""Evaluation: the error of a model on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.config.schema import Config
from loopprobe.model.protocol import LoopedModel
from loopprobe.reference.baselines.optimal import UNKNOWN
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.support.statistics import share_interval, summarise_errors
from loopprobe.support.threads import Parallel
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.tokens import longest_length

Result = TypeVar("Result")

TOKENS = 256  # of a prompt; fewer prompts run at once where they have more
NUMBERS = 2**28  # of answers that are kept at once: 1 GB in float32


def chunk_size(device: torch.device) -> int:
    """Return the number of prompts to run at once; on a CPU a larger batch leaves the cache and is slower."""
    return 24 if device.type == "cpu" else 4096


def batches(
    model: LoopedModel, prompts: Any, loops_kept: int = 1, states: bool = False, run_share: float = 1.0
) -> list[Any]:
    """Split prompts (a ``PromptBatch``) into batches that the processor likes and the memory holds.

    Args:
        model: the model that runs them.
        prompts: the prompts.
        loops_kept: how many loops' answers are kept of each batch at once.
        states: whether the states of all these loops are kept too.
        run_share: the share of the tokens of a prompt that most iterations run.
    """
    size = int(chunk_size(model.device) / run_share)
    size = min(size, size * TOKENS // max(prompts.n_tokens, TOKENS))
    numbers = prompts.n_answers * model.value_size + (prompts.n_tokens * model.sizes.d_model if states else 0)
    return list(prompts.split(max(1, min(size, NUMBERS // (loops_kept * numbers)))))


def over_batches(
    model: LoopedModel,
    prompts: Any,
    run: Callable[[Any], Result],
    loops_kept: int = 1,
    at_once: Sequence[Any] | None = None,
) -> Parallel[Any, Result]:
    """Run every batch of prompts without gradient, several at once where the model can, and give the results in order.

    The results are those of one batch after the other, bit for bit. Where somebody hooks the model, and on a GPU, that
    is what is done.

    Args:
        model: the model that runs them.
        prompts: the prompts.
        run: from one batch to a result; it calls ``support.threads.go_on`` in loops of its own.
        loops_kept: how many loops' answers are kept of each batch at once.
        at_once: the batches; None: those of ``batches``.
    """
    parts = batches(model, prompts, loops_kept) if at_once is None else at_once
    threads = torch.get_num_threads() if "threads" in model.supports else 1
    if threads > 1 and parts:
        numbers = loops_kept * parts[0].n_prompts * parts[0].n_answers * model.value_size
        threads = min(threads, max(1, NUMBERS // numbers))

    def quiet(part: Any) -> Result:
        with torch.no_grad():
            return run(part)

    return Parallel(quiet, parts, threads)


def query_error(model: LoopedModel, prompts: PromptBatch, n_loops: int | None = None) -> Float[Tensor, "loop batch"]:
    """Return the error at the query after every loop, in the unit of the prompts."""

    def run(batch: PromptBatch) -> Tensor:
        return batch.errors(model(*batch.inputs, n_loops=n_loops, read_at=batch.read_at))[..., -1]

    chunks = list(over_batches(model, prompts, run, n_loops or model.sizes.n_loops))
    return torch.cat(chunks, dim=1)


def evaluate(checkpoint: Checkpoint, *, n_prompts: int = 1280, seed: int = 0, far: int | None = None) -> dict[str, Any]:
    """Measure the error at the query after the trained loop count: its median, the share of failures, and its mean.

    The result also holds the error of the best predictor that knows the task (``baselines.optimal``) on these prompts.
    Of a token task it holds in ``right`` which share of prompts is right as a whole, and of answers, at the longest
    length of the training, at 1.5 and at 2 times it, with the loops that the training gives such a length, or would.

    Args:
        checkpoint: the model.
        n_prompts: the number of held-out prompts.
        seed: the seed of these prompts.
        far: a second loop count after which a looped model is measured; the time grows with it.

    Returns:
        Plain data, as config.json records it.
    """
    prompts = checkpoint.held_out(n_prompts, seed)
    trained = checkpoint.loops_of(prompts)
    loops = [trained] if far is None or trained == 1 else sorted({trained, far})
    errors = query_error(checkpoint.model, prompts, loops[-1])[[loop - 1 for loop in loops]]
    summary = summarise_errors(errors.cpu().numpy(), prompts.failure_level)
    name, best = checkpoint.optimum(prompts)
    tokens = {} if not checkpoint.config.task.reads_tokens else {"right": _right(checkpoint, n_prompts, seed)}
    return tokens | {
        "measure": prompts.query_unit,
        "n_prompts": n_prompts,
        "seed": seed,
        "loops": loops,
        "failure_level": prompts.failure_level,
        **{name: values.tolist() for name, values in summary.items()},
        "optimum": None if name == UNKNOWN else {"name": name, "error": _median(prompts.errors(best))},
    }


def _median(errors: Float[Tensor, "batch answer"]) -> float:
    return errors[:, -1].quantile(0.5).item()


def _right(checkpoint: Checkpoint, n_prompts: int, seed: int) -> dict[str, list[float]]:
    """Measure the share of right prompts and answers within and beyond the training's lengths."""
    task = checkpoint.config.task
    trained = task.length or 1
    lengths = [longest_length(task, checkpoint.model.cfg.n_ctx, int(factor * trained)) for factor in (1, 1.5, 2)]
    rows: dict[str, list[float]] = {name: [] for name in ("length", "loops", "exact", "low", "high", "accuracy")}
    for length in dict.fromkeys(lengths):
        prompts = checkpoint.held_out(n_prompts, seed, length=length)
        loops = checkpoint.loops_of(prompts)
        answered = partial(_correct, checkpoint.model, loops)
        right = torch.cat(list(over_batches(checkpoint.model, prompts, answered))).cpu()
        ends = share_interval(right.all(-1).numpy())
        values = (length, loops, *(float(end) for end in ends), right.float().mean().item())
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return rows


def _correct(model: LoopedModel, loops: int, batch: PromptBatch) -> Tensor:
    right = batch.correct(model(*batch.inputs, n_loops=loops, keep_loops=1, read_at=batch.read_at)[0])
    assert right is not None, "a task knows its answers"
    return right


def prompts_after_training(config: Config) -> int:
    """Return the number of prompts for the evaluation after training: 1,280, or fewer where training is short.

    An evaluated prompt needs a forward pass alone, at most a third of the work of a training prompt. With at most a
    tenth of the training prompts, or 16, the evaluation of all but the shortest trainings takes below 4 % of the time.
    """
    return int(min(1280, max(16, config.train.steps * config.train.batch_size // 10)))
