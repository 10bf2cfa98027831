"""One call for a probe in a notebook: ``data = probe("lens", checkpoint)``, then ``figure(data)``."""

from __future__ import annotations

from typing import Any

import xarray as xr

from loopprobe.probes.questions import GIVEN, Prepared, answer, configured
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.support.progress import track
from loopprobe.tasks import Prompts


def probe(name: str, checkpoint: Checkpoint, prompts: Prompts | int = 256, **options: Any) -> xr.Dataset:
    """Run a probe on a checkpoint, with a progress bar.

    Args:
        name: of the probe: a key of ``questions.PROBES``, such as lens, patch or converge.
        checkpoint: from ``load_checkpoint``.
        prompts: held-out prompts, or how many.
        options: fields of the probe's configuration, such as ``loops``; ``positions`` may be negative or ``query``. For
            align, decode and lens also ``training``, prompts to fit on; for patch ``corrupted``, the corrupted prompts,
            and ``metric``, a function from the predictions at the query to a number for each prompt.

    Returns:
        The probe's dataset; ``figure(data)`` shows it.

    Raises:
        LoopprobeError: no such probe, or an option that it does not have or the model cannot answer.
    """
    given = {key: options.pop(key) for key in GIVEN.get(name, ()) if key in options}
    chosen, config = configured(name, options)
    batch = checkpoint.held_out(prompts) if isinstance(prompts, int) else prompts
    if not given:  # else the probe checks what it is given, when it runs
        chosen.check(checkpoint, config, batch)
    [data] = answer([Prepared(name, checkpoint, config, batch, given)], track)
    return data
