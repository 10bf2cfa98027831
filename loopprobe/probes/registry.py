"""All probes by name: a probe is one file in this room, with its declaration at the end, and one word here."""

from __future__ import annotations

from loopprobe.errors import LoopprobeError
from loopprobe.probes import (
    align,
    attention,
    attribute,
    compare,
    converge,
    curves,
    decode,
    exit,
    extrapolate,
    fixed_points,
    folds,
    lens,
    mask,
    patch,
    paths,
    recover,
    shift,
)
from loopprobe.probes.declaration import Probe

PROBES: dict[str, Probe] = {
    module.PROBE.name: module.PROBE
    for module in (
        align, attention, attribute, compare, converge, curves, decode, exit, extrapolate, fixed_points, folds, lens,
        mask, patch, paths, recover, shift,
    )
}  # fmt: skip


def find_probe(name: str) -> Probe:
    """A probe by name.

    Raises:
        LoopprobeError: there is none.
    """
    if name not in PROBES:
        raise LoopprobeError(f"no probe is called {name!r}: choose from {', '.join(PROBES)}")
    return PROBES[name]
