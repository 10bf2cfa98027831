"""The folder of a training run: its metrics, its saved state, and how it is resumed.

``state.safetensors`` holds everything that the next step depends on: weights, optimiser state and the generator. A run
that was killed at any moment is resumed from it, and ends with the same weights, bit for bit, as one never killed.
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
from jaxtyping import Float
from torch import Tensor

from loopprobe.config.schema import Config
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.checkpoint import METRICS, Checkpoint, save
from loopprobe.store.evaluate import evaluate, prompts_after_training
from loopprobe.store.record import read_json
from loopprobe.store.training_state import read_state, remove_state, save_state
from loopprobe.support.provenance import provenance
from loopprobe.support.storage import Claimed, atomic, claim, claim_new
from loopprobe.tasks import Prompts, TokenPrompts

Row = dict[str, float | int]


def recorded_config(out: Path, requested: Config | None) -> Config:
    """Return the configuration that the run has recorded; a requested one must be equal to it."""
    recorded = read_json(out)[0]
    if not isinstance(recorded, Config) or requested not in (None, recorded):
        raise LoopprobeError(
            f"the configuration differs from that of {out}: resume without options, or train anew with another --out"
        )
    return recorded


class Run:
    """A training run: its folder, its metrics and its saved state."""

    def __init__(
        self,
        out: Path,
        cfg: Config,
        model: LoopedTransformer,
        optimizers: list[torch.optim.Optimizer],
        generator: torch.Generator,
        report: Callable[[Row], None],
    ) -> None:
        self.out, self.cfg, self.train, self.model, self.optimizers = out, cfg, cfg.train, model, optimizers
        self.generator, self.report = generator, report
        self.device = next(model.parameters()).device
        self.provenance = provenance(self.device, torch.float32)  # describes the code that trains
        self.step = 0
        self.seconds = 0.0  # before the run was last resumed
        self.started = time.monotonic()
        self.unread: list[Tensor] = []  # what was recorded of the last steps, still on the device
        self.measures = (TokenPrompts if cfg.task.reads_tokens else Prompts).measures
        self.pending = torch.empty(0, len(self.measures))  # … of the steps before them, since the last row
        mastery = cfg.train.mastery
        self.mastered = mastery.start if mastery else None  # how far it has come
        self.saved_at = 0
        self.claimed: Claimed | None = None

    def begin(self, overwrite: bool) -> None:
        """Make the folder and save the state before the first step."""
        self.claimed = claimed = claim_new(self.out, overwrite)
        try:
            claim(self.out, METRICS)
            (self.out / METRICS).touch()
            self.save_state()
        except BaseException:
            claimed.remove()
            raise

    def close(self) -> None:
        """Release the folder to other processes."""
        if self.claimed is not None:
            self.claimed.release()

    def abandon(self) -> None:
        """Delete the run if it has done no step."""
        if self.claimed is not None and self.step == 0:
            self.claimed.remove()

    def restore(self) -> None:
        """Resume from the last saved state."""
        self.claimed = Claimed(self.out)
        claim(self.out, METRICS)
        state = read_state(self.out, self.model, self.optimizers, self.generator)
        if state is None:
            raise LoopprobeError(f"{self.out} holds no unfinished run: nothing to resume")
        self.step, self.seconds, self.pending, mastered = state
        self.mastered = self.mastered and mastered
        self.saved_at = self.step
        rows = [json.loads(line) for line in _whole_lines(self.out / METRICS)]
        valid = [row for row in rows if row["step"] <= self.step]
        with atomic(self.out / METRICS) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in valid), encoding="utf-8")

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.cfg, self.model, self.step, round(self.elapsed(), 1), provenance=self.provenance)

    def sizes(self, step: int) -> dict[str, int]:
        """The sizes of a step, see ``TrainConfig.sizes``."""
        return self.train.sizes(step, self.mastered)

    def record(self, measured: Float[Tensor, " measure"]) -> None:
        """Record what was measured in one step; write a row and save the state when they are due."""
        train = self.train
        self.step += 1
        self.unread.append(measured)
        if self.step % train.log_every == 0 or self.step == train.steps:
            self.log()
        if self.step % train.checkpoint_every == 0:
            self.save_state()

    def read(self) -> Float[Tensor, "step measure"]:
        """Return what was measured in each step since the last row, copied from the device.

        Raises:
            LoopprobeError: a loss is not finite.
        """
        if self.unread:
            self.pending = torch.cat([self.pending, torch.stack(self.unread).cpu()])
            self.unread.clear()
        losses = self.pending[:, 0]
        if not losses.isfinite().all():
            first = int((~losses.isfinite()).nonzero()[0, 0])
            raise LoopprobeError(
                f"the loss became {losses[first].item()} at step {self.step - len(losses) + first + 1} (last good "
                f"checkpoint: step {self.saved_at}, in {self.out}): lower train.muon_lr or train.adam_lr, "
                "lengthen train.warmup_steps, or lower train.grad_clip"
            )
        return self.pending

    def log(self) -> None:
        """Write a row with the mean over the steps since the last row."""
        means = dict(zip(self.measures, self.read().mean(0).tolist(), strict=True))
        row: Row = {"step": self.step} | means
        row |= self.train.reached(self.step - 1, self.mastered) | {"seconds": round(self.elapsed(), 2)}
        self.pending = torch.empty(0, len(self.measures))
        self.mastered = self.train.next_mastered(self.mastered, means)
        with (self.out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.report(row)

    def save_state(self) -> None:
        """Write the checkpoint and the state that the next step depends on."""
        pending = self.read()
        save(self.checkpoint(), self.out)
        save_state(
            self.out, self.model, self.optimizers, self.generator, self.step, self.elapsed(), pending, self.mastered
        )
        self.saved_at = self.step

    def finish(self) -> Path:
        """Evaluate at the trained loop count, write the final checkpoint and delete the training state."""
        final = self.checkpoint()
        final.evaluation = evaluate(final, n_prompts=prompts_after_training(self.cfg))
        save(final, self.out)
        remove_state(self.out)
        return self.out


def _whole_lines(path: Path) -> list[str]:
    """Read the lines of a file that end in a newline; a killed run may leave an incomplete one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Defer Ctrl-C and SIGTERM until the step has ended; a second signal interrupts at once."""
    noted = False

    def note(signum: int, frame: Any) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    signals = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    try:
        previous = [signal.signal(number, note) for number in signals]
    except ValueError:  # not in the main thread: the default handling stays
        yield lambda: False
        return
    try:
        yield lambda: noted
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
