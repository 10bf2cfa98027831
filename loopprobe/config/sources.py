"""The sources of a configuration: a preset, a TOML file, and ``section.key=value`` overrides. Imports no torch."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from loopprobe.config.schema import Config, TaskConfig, plain, vocabulary
from loopprobe.config.strict import build
from loopprobe.errors import LoopprobeError


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("loopprobe.config") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_config(path: Path | None = None, preset: str | None = None, overrides: Iterable[str] = ()) -> Config:
    """The configuration from a preset, a TOML file and ``section.key=value`` overrides, later over earlier.

    Raises:
        LoopprobeError: an unknown preset, file, key or value.
    """
    tree = {} if preset is None else read_preset(preset)
    if path is not None:
        tree = merge(tree, read_toml(path))
    return make_config(with_overrides(tree, overrides), preset)


def with_overrides(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A configuration tree with the values of ``section.key=value`` laid over it, later over earlier.

    Raises:
        LoopprobeError: an override is not of this form.
    """
    for override in overrides:
        tree = merge(tree, nested(*_parse_override(override)))
    return tree


def make_config(tree: dict[str, Any], preset: str | None = None) -> Config:
    """The configuration of a tree; what a token task needs and the tree does not say is taken from its preset.

    Raises:
        LoopprobeError: a field is not known, or has a value that it cannot have.
    """
    task, model = tree.get("task"), tree.get("model", {})
    name = task.get("name") if isinstance(task, dict) else None
    if isinstance(name, str) and isinstance(model, dict) and build(TaskConfig, tree["task"]).reads_tokens:
        tree = tree if preset is not None or name not in preset_names() else merge(read_preset(name), tree)
        task, train = build(TaskConfig, tree["task"]), tree.get("train")
        sizes = vocabulary(task)
        loops = train.get("loops") if isinstance(train, dict) else None
        if isinstance(loops, dict) and loops.get("kind") == "length":
            sizes["n_loops"] = task.length
        tree = tree | {"model": sizes | tree.get("model", {})}
    config: Config = build(Config, tree)
    return config


def with_task(cfg: Config | None, task: TaskConfig) -> Config:
    """A configuration with another task; None stands for the defaults.

    Raises:
        LoopprobeError: the task does not fit the model.
    """
    if cfg is None:
        return make_config({"task": plain(task)})
    if cfg.task.reads_tokens != task.reads_tokens:
        kinds = [f"{one.name} ({'tokens' if one.reads_tokens else 'points'})" for one in (task, cfg.task)]
        raise LoopprobeError(
            f"task {kinds[0]} does not fit a configuration of {kinds[1]}: make it by load_config with task.name, or "
            "give None for the defaults"
        )
    return dataclasses.replace(cfg, task=task)


def read_preset(name: str) -> dict[str, Any]:
    """The configuration tree of a preset.

    Raises:
        LoopprobeError: there is no preset of this name.
    """
    if name not in preset_names():
        raise LoopprobeError(f"unknown preset {name!r}: choose one of {', '.join(preset_names())}")
    return tomllib.loads((resources.files("loopprobe.config") / "presets" / f"{name}.toml").read_text(encoding="utf-8"))


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration tree with the values of another laid over it."""
    merged = dict(base)
    for key, value in over.items():
        # A schedule of another kind replaces the old one: its keys belong together.
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict) and "kind" not in value
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_toml(path: Path, kind: str = "config file") -> dict[str, Any]:
    """The tree of a TOML file; LoopprobeError where there is none or it is damaged."""
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoopprobeError(f"no {kind} at {path}: check the path") from None
    except ValueError as error:  # no TOML, no text, or a number of thousands of digits
        reason = " ".join(str(error).split())
        raise LoopprobeError(f"{path} is not valid TOML ({reason}): mend the file") from None
    except OSError as error:
        raise LoopprobeError(f"cannot read {path} ({error.strerror}): check the path") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tree of a TOML text.

    Raises:
        ValueError: it is no TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(part.strip() for part in key.split(".")):
        raise LoopprobeError(f"--set {text[:60]!r} must have the form section.key=value, like train.steps=500")
    try:
        tree = parse_toml(f"value = {value}")
    except ValueError:
        return key, value.strip()
    return key, tree["value"] if len(tree) == 1 else value.strip()


def refuse_conflicts(overrides: Sequence[str]) -> None:
    """Raise LoopprobeError where one command line sets a key twice, or both as a whole and in part."""
    keys = [_parse_override(override)[0] for override in overrides]
    for i, key in enumerate(keys):
        for other in keys[:i]:
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                both = f"{key} is set twice" if key == other else f"{other} and {key} set the same values"
                raise LoopprobeError(f"{both}: set each value once")


def nested(key: str, value: Any) -> dict[str, Any]:
    """``("train.steps", 5)`` → ``{"train": {"steps": 5}}``."""
    *outer, last = key.split(".")
    tree: dict[str, Any] = {last: value}
    for part in reversed(outer):
        tree = {part: tree}
    return tree
