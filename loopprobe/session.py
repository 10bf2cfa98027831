"""One call for a probe in a notebook: ``data = probe("lens", checkpoint)``, then ``figure(data)``."""

from __future__ import annotations

from typing import Any

import xarray as xr

from loopprobe.checkpoint import Checkpoint
from loopprobe.config import build
from loopprobe.errors import LoopprobeError
from loopprobe.progress import track
from loopprobe.questions import PROBES
from loopprobe.tasks import Prompts


def probe(name: str, checkpoint: Checkpoint, prompts: Prompts | int = 256, **options: Any) -> xr.Dataset:
    """Put a probe to a checkpoint, with a progress bar.

    Args:
        name: of the probe: attention, attribute, compare, converge, curves, lens, mask or patch.
        checkpoint: from ``load_checkpoint``.
        prompts: held-out prompts, or how many.
        options: fields of the probe's configuration, such as ``loops``.

    Returns:
        The probe's dataset; ``figure(data)`` shows it.

    Raises:
        LoopprobeError: no such probe, or an option that it does not have or the model cannot answer.
    """
    if name not in PROBES:
        raise LoopprobeError(f"no probe is called {name!r}: choose from {', '.join(PROBES)}")
    config = build(PROBES[name].config, options)
    PROBES[name].check(checkpoint, config)
    batch = checkpoint.held_out(prompts) if isinstance(prompts, int) else prompts
    return PROBES[name].run(checkpoint, batch, config, track(f"{name} {checkpoint.label}"))
