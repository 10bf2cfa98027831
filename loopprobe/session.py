"""One call for a probe in a notebook: ``data = probe("lens", checkpoint)``, then ``figure(data)``."""

from __future__ import annotations

from typing import Any

import xarray as xr

from loopprobe.checkpoint import Checkpoint
from loopprobe.progress import track
from loopprobe.questions import GIVEN, Prepared, answer, configured
from loopprobe.tasks import Prompts


def probe(name: str, checkpoint: Checkpoint, prompts: Prompts | int = 256, **options: Any) -> xr.Dataset:
    """Put a probe to a checkpoint, with a progress bar.

    Args:
        name: of the probe: a key of ``questions.PROBES``, such as lens, patch or converge.
        checkpoint: from ``load_checkpoint``.
        prompts: held-out prompts, or how many.
        options: fields of the probe's configuration, such as ``loops``; for align, decode and lens ``training``,
            prompts to fit on; for patch ``corrupted``, the corrupted prompts, and ``metric``, a function from the
            predictions at the query to a number for each prompt.

    Returns:
        The probe's dataset; ``figure(data)`` shows it.

    Raises:
        LoopprobeError: no such probe, or an option that it does not have or the model cannot answer.
    """
    given = {key: options.pop(key) for key in GIVEN.get(name, ()) if key in options}
    found, config = configured(name, options)
    found.check(checkpoint, config)
    batch = checkpoint.held_out(prompts) if isinstance(prompts, int) else prompts
    found.check(checkpoint, config, batch)
    [data] = answer([Prepared(name, checkpoint, config, batch, given)], track)
    return data
