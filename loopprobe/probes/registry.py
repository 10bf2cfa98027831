"""All probes by name: a probe is one file in this room, with its declaration at the end, and one word here."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module

from loopprobe.errors import LoopprobeError
from loopprobe.probes.declaration import Probe

NAMES = (
    "ablate", "align", "attention", "attribute", "circuit", "compare", "converge", "curves", "decode", "edges", "exit",
    "explore", "extrapolate", "failures", "features", "fixed_points", "folds", "lens", "mask", "patch", "paths",
    "recover", "shift", "steer", "weights",
)  # fmt: skip


class Registry(MutableMapping[str, Probe]):
    """Probes by name, each imported when it is asked for: together they take a second."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._probes: dict[str, Probe | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Probe:
        probe = self._probes[name]
        if probe is None:
            probe = self._probes[name] = import_module(f"loopprobe.probes.{name}").PROBE
        return probe

    def __setitem__(self, name: str, probe: Probe) -> None:
        self._probes[name] = probe

    def __delitem__(self, name: str) -> None:
        del self._probes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._probes)

    def __len__(self) -> int:
        return len(self._probes)

    def __contains__(self, name: object) -> bool:
        return name in self._probes


PROBES = Registry(NAMES)


def find_probe(name: str) -> Probe:
    """A probe by name.

    Raises:
        LoopprobeError: there is none.
    """
    if name not in PROBES:
        raise LoopprobeError(f"no probe is called {name!r}: choose from {', '.join(PROBES)}")
    return PROBES[name]
