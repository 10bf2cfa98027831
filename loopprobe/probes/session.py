"""One call for a probe in a notebook: ``data = probe("lens", checkpoint)``, then ``figure(data)``."""

from __future__ import annotations

from typing import Any

import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.probes.questions import Prepared, answer, configured
from loopprobe.probes.registry import find_probe
from loopprobe.store.subject import PromptSpec, Subject
from loopprobe.support.progress import track
from loopprobe.tasks import PromptBatch


def probe(name: str, checkpoint: Subject, prompts: PromptBatch | int = 256, **options: Any) -> xr.Dataset:
    """Run a probe on a checkpoint, with a progress bar.

    Args:
        name: of the probe: a key of ``probes.registry.PROBES``, such as lens, patch or converge.
        checkpoint: from ``load_checkpoint`` or ``with_task``, or any other model with its task
            (``store.subject.Subject``).
        prompts: held-out prompts, or how many.
        options: fields of the probe's configuration, such as ``loops``, which ``help(PROBES[name].config)`` tells
            (``from loopprobe.probes.registry import PROBES``); ``positions`` may be negative or ``query``. Some
            probes also take things that are no options, named by their ``given``: ``training``, prompts to fit on;
            ``corrupted``, the corrupted prompts; ``measure``, a function of outputs and prompts (``probes.measures``);
            ``dictionary``, the dataset of an earlier run; ``direction`` and ``groups``, see ``probes.steer.run``.

    Returns:
        The probe's dataset; ``figure(data)`` shows it.

    Raises:
        LoopprobeError: no such probe, an option that it does not have or the model cannot answer, or a model without a
            task.
    """
    given = {key: options.pop(key) for key in find_probe(name).given if key in options}
    chosen, config = configured(name, options)
    if not isinstance(checkpoint, Subject):
        raise LoopprobeError(
            f"a {type(checkpoint).__name__} has no task to draw prompts from: give what load_checkpoint returns, or "
            "loopprobe.with_task(loopprobe.wrap(module, ...), task)"
        )
    if not isinstance(prompts, int | PromptBatch):
        raise LoopprobeError(
            f"prompts ({type(prompts).__name__}) must be a number of them, or what checkpoint.held_out or "
            "loopprobe.held_out returns"
        )
    batch = checkpoint.draw(PromptSpec(prompts=prompts)) if isinstance(prompts, int) else prompts
    chosen.require(checkpoint, batch, config, given)
    [data] = answer([Prepared(name, checkpoint, config, batch, given)], track)
    return data
