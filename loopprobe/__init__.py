"""loopprobe: interpretability probes for looped transformers.

    from loopprobe import load
    model = load("lr-b20-T10")

Names are loaded when they are first used, so that ``import loopprobe`` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loopprobe._version import __version__

if TYPE_CHECKING:
    from loopprobe.config.schema import Config, ModelConfig, TaskConfig, TrainConfig
    from loopprobe.config.sources import load_config
    from loopprobe.errors import LoopprobeError
    from loopprobe.model.cache import LoopCache
    from loopprobe.model.interventions import (
        add,
        edited,
        freeze,
        hide,
        mean_activations,
        replace,
        resample,
        skipped,
        swap,
        zero,
    )
    from loopprobe.model.looped import LoopedTransformer
    from loopprobe.model.masks import masked, mean_states, reset
    from loopprobe.model.stream import open_cache
    from loopprobe.probes.paired import difference
    from loopprobe.probes.session import probe
    from loopprobe.show.explore.session import explore
    from loopprobe.show.present import figure, figures, table
    from loopprobe.store.checkpoint import load, load_checkpoint
    from loopprobe.store.evaluate import query_error
    from loopprobe.store.own import with_task
    from loopprobe.support.memory import keep_freed_memory
    from loopprobe.tasks import Prompts, RegressionTask, TokenTask, held_out, register_task, sample
    from loopprobe.tasks.corruptions import corrupt
    from loopprobe.training.train import train
    from loopprobe.wrapped.wrap import wrap

_HOME = {
    "LoopCache": "model.cache",
    "load": "store.checkpoint",
    "load_checkpoint": "store.checkpoint",
    "Config": "config.schema",
    "ModelConfig": "config.schema",
    "TaskConfig": "config.schema",
    "TrainConfig": "config.schema",
    "load_config": "config.sources",
    "LoopprobeError": "errors",
    "masked": "model.masks",
    "mean_states": "model.masks",
    "reset": "model.masks",
    "edited": "model.interventions",
    "skipped": "model.interventions",
    "add": "model.interventions",
    "freeze": "model.interventions",
    "hide": "model.interventions",
    "mean_activations": "model.interventions",
    "replace": "model.interventions",
    "resample": "model.interventions",
    "swap": "model.interventions",
    "zero": "model.interventions",
    "keep_freed_memory": "support.memory",
    "difference": "probes.paired",
    "figure": "show.present",
    "figures": "show.present",
    "table": "show.present",
    "explore": "show.explore.session",
    "query_error": "store.evaluate",
    "corrupt": "tasks.corruptions",
    "probe": "probes.session",
    "open_cache": "model.stream",
    "LoopedTransformer": "model.looped",
    "Prompts": "tasks",
    "RegressionTask": "tasks",
    "TokenTask": "tasks",
    "register_task": "tasks",
    "held_out": "tasks",
    "sample": "tasks",
    "train": "training.train",
    "with_task": "store.own",
    "wrap": "wrapped.wrap",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"loopprobe.{_HOME[name]}"), name)
    raise AttributeError(f"module 'loopprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
