"""loopprobe: interpretability probes for looped transformers.

    from loopprobe import load
    model = load("lr-b20-T10")

Names are loaded when they are first used, so that ``import loopprobe`` is instant.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from loopprobe.cache import LoopCache
    from loopprobe.checkpoint import load, load_checkpoint
    from loopprobe.config import Config, ModelConfig, TaskConfig, TrainConfig
    from loopprobe.errors import LoopprobeError
    from loopprobe.hooks import masked, mean_states
    from loopprobe.interventions import edited, skipped
    from loopprobe.memory import keep_freed_memory
    from loopprobe.model import LoopedTransformer
    from loopprobe.present import figure
    from loopprobe.session import probe
    from loopprobe.settings import load_config
    from loopprobe.stream import open_cache
    from loopprobe.tasks import Prompts, held_out, sample
    from loopprobe.train import train

_HOME = {
    "LoopCache": "cache",
    "load": "checkpoint",
    "load_checkpoint": "checkpoint",
    "Config": "config",
    "ModelConfig": "config",
    "TaskConfig": "config",
    "TrainConfig": "config",
    "load_config": "settings",
    "LoopprobeError": "errors",
    "masked": "hooks",
    "mean_states": "hooks",
    "edited": "interventions",
    "skipped": "interventions",
    "keep_freed_memory": "memory",
    "figure": "present",
    "probe": "session",
    "open_cache": "stream",
    "LoopedTransformer": "model",
    "Prompts": "tasks",
    "held_out": "tasks",
    "sample": "tasks",
    "train": "train",
}
__all__ = [*_HOME, "__version__"]


class _Package(ModuleType):
    """The package, where a public name stays what it is when the module of the same name is imported (``train``)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"loopprobe.{_HOME[name]}"), name)
    raise AttributeError(f"module 'loopprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
