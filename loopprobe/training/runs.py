"""The folder of a run in training: what has been measured, what has been saved, and going on from it.

``state.safetensors`` holds everything that the next step depends on (weights, optimiser state, the generator), so a
run that was killed at any moment goes on from it and ends with the same weights, bit for bit, as one never killed.
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
from loopprobe.store.checkpoint import METRICS, Checkpoint, read_state, remove_state, save, save_state
from loopprobe.store.checkpoint_file import read_json
from loopprobe.store.evaluate import evaluate, prompts_after_training
from loopprobe.support.provenance import provenance
from loopprobe.support.storage import Claimed, atomic, claim, claim_new

Row = dict[str, float | int]


def recorded_config(out: Path, given: Config | None) -> Config:
    """The run's own configuration; one that was given must be equal to it."""
    recorded = read_json(out)[0]
    if not isinstance(recorded, Config) or given not in (None, recorded):
        raise LoopprobeError(
            f"the configuration differs from that of {out}: resume without options, or train anew with another --out"
        )
    return recorded


class Run:
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
        self.out, self.cfg, self.train, self.model, self.optimizers = out, cfg, cfg.train, model, optimizers
        self.generator, self.report = generator, report
        self.device = next(model.parameters()).device
        self.provenance = provenance(self.device, torch.float32)  # of the code that trains
        self.step = 0
        self.seconds = 0.0  # of the run's earlier lives
        self.started = time.monotonic()
        self.unread: list[Tensor] = []  # of the steps since the last row, on the device …
        self.pending = torch.empty(0, 2)  # … and those before them
        self.saved_at = 0
        self.claimed: Claimed | None = None

    def begin(self, overwrite: bool) -> None:
        """Make the folder, and save the state before the first step."""
        self.claimed = claimed = claim_new(self.out, overwrite)
        try:
            claim(self.out, METRICS)
            (self.out / METRICS).touch()
            self.save_state()
        except BaseException:
            claimed.remove()
            raise

    def close(self) -> None:
        """Let other processes work in the folder."""
        if self.claimed is not None:
            self.claimed.release()

    def abandon(self) -> None:
        """Delete a run that has done no step."""
        if self.claimed is not None and self.step == 0:
            self.claimed.remove()

    def restore(self) -> None:
        """Go on from the last state."""
        self.claimed = Claimed(self.out)
        claim(self.out, METRICS)
        state = read_state(self.out, self.model, self.optimizers, self.generator)
        if state is None:
            raise LoopprobeError(f"{self.out} holds no unfinished run: nothing to resume")
        self.step, self.seconds, self.pending = state
        self.saved_at = self.step
        rows = [json.loads(line) for line in _whole_lines(self.out / METRICS)]
        kept = [row for row in rows if row["step"] <= self.step]
        with atomic(self.out / METRICS) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.cfg, self.model, self.step, round(self.elapsed(), 1), provenance=self.provenance)

    def record(self, errors: Float[Tensor, 2]) -> None:
        """Note one step, its loss and its error at the query; read them and save the state when it is time."""
        train = self.train
        self.step += 1
        self.unread.append(errors)
        if self.step % train.log_every == 0 or self.step == train.steps:
            self.log()
        if self.step % train.checkpoint_every == 0:
            self.save_state()

    def read(self) -> Float[Tensor, "step 2"]:
        """Loss and error of the steps since the last row, from the device; stops where a loss is not finite."""
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
        """Write the mean of the steps since the last row."""
        loss, error = self.read().mean(0).tolist()
        row: Row = {"step": self.step, "loss": loss, "error": error}
        row |= self.train.lengths(self.step - 1) | {"seconds": round(self.elapsed(), 2)}
        self.pending = torch.empty(0, 2)
        with (self.out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.report(row)

    def save_state(self) -> None:
        """Write the checkpoint and all that the next step depends on."""
        pending = self.read()
        save(self.checkpoint(), self.out)
        save_state(self.out, self.model, self.optimizers, self.generator, self.step, self.elapsed(), pending)
        self.saved_at = self.step

    def finish(self) -> Path:
        """Evaluate at the trained loop count, write the final checkpoint and drop the training state."""
        final = self.checkpoint()
        final.evaluation = evaluate(final, n_prompts=prompts_after_training(self.cfg))
        save(final, self.out)
        remove_state(self.out)
        return self.out


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file that end in a newline: a killed run may leave half of one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C and SIGTERM, to be obeyed between steps; a second one interrupts at once."""
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
