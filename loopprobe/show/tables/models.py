"""Tables of checkpoints and grids."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from loopprobe.config.schema import AnyConfig, Config, TaskConfig
from loopprobe.show.tables.plain import titled
from loopprobe.store.record import recorded_errors

if TYPE_CHECKING:
    from loopprobe.training.sweep import Planned

TOKENS = "token tasks"
Recorded = tuple[str, AnyConfig, dict[str, Any]]  # the name, the configuration, and the whole content of config.json


def checkpoint_tables(rows: Iterable[Recorded]) -> list[Table]:
    """Return one table per kind of model."""
    kinds: dict[str, list[Recorded]] = {}
    for row in rows:
        kinds.setdefault(_kind(row[1]), []).append(row)
    tables = {True: token_table, False: checkpoint_table}
    return [tables[kind == TOKENS](members, kind) for kind, members in sorted(kinds.items())]


def _kind(cfg: AnyConfig) -> str:
    """Return the kind of a model as the title of its table."""
    if cfg.task.reads_tokens:
        return TOKENS
    if cfg.model.n_loops == 1:
        return "ordinary transformers"
    if cfg.task != TaskConfig():
        return "other tasks"
    return "linear regression, one layer" if cfg.model.n_layers == 1 else "linear regression, several layers"


def checkpoint_table(rows: Iterable[Recorded], title: str = "checkpoints") -> Table:
    """Tabulate what each checkpoint is and how good it is, one row per checkpoint.

    Errors are medians over prompts with 95 % intervals, beside the share of prompts that fail. The best predictor is
    the median error, on the same prompts, of the predictor that knows the task (``baselines.optimal``).
    """
    table = titled(title)
    columns = ("name", "task", "layers", "b", "T", "error at b", "fails", "error at 500", "fails at 500")
    for name in (*columns, "best predictor", "steps"):
        table.add_column(name, justify="left" if name in ("name", "task") else "right")
    for name, cfg, tree in rows:
        evaluation = tree["evaluation"] or {}
        errors = [cell for one in recorded_errors(evaluation) for cell in (one.words, one.failing)]
        errors = (errors + ["–"] * 4)[:4]
        window = str(cfg.train.loop_window) if isinstance(cfg, Config) and cfg.model.n_loops > 1 else "–"
        optimum = evaluation.get("optimum")
        best = f"{round(optimum['error'], 9):.2g} ({optimum['name']})" if optimum else "–"
        table.add_row(
            name, _in_words(cfg.task), str(cfg.model.n_layers), str(cfg.model.n_loops), window, *errors, best,
            f"{tree['step']:,}",
        )  # fmt: skip
    return table


def token_table(rows: Iterable[Recorded], title: str = "checkpoints") -> Table:
    """Tabulate the models of token tasks: what share of prompts is right as a whole, within and beyond the training.

    Shares have 95 % intervals. The loops beyond the training are those that its rule gives the length.
    """
    table = titled(title)
    for name in (
        "name",
        "task",
        "layers",
        "b",
        "length",
        "right",
        "at 1.5 times",
        "at 2 times",
        "error, nats",
        "steps",
    ):
        table.add_column(name, justify="left" if name in ("name", "task") else "right")
    for name, cfg, tree in rows:
        evaluation = tree["evaluation"] or {}
        right = evaluation.get("right", {})
        lengths = right.get("length", [])
        shares = {
            length: f"{mean:.3g} [{low:.2g}, {high:.2g}]"
            for length, mean, low, high in zip(
                *(right.get(p, []) for p in ("length", "exact", "low", "high")), strict=True
            )
        }
        beyond = [shares[length] for length in lengths[1:]]
        by_length = isinstance(cfg, Config) and cfg.train.loops.kind == "length"
        errors = recorded_errors(evaluation)
        length = f"{cfg.task.length} {getattr(cfg.task.known, 'counts', '')}".strip()
        table.add_row(
            name, _in_words(cfg.task), str(cfg.model.n_layers), "length" if by_length else str(cfg.model.n_loops),
            length, shares.get(lengths[0], "–") if lengths else "–",
            *(*beyond, "–", "–")[:2], errors[0].words if errors else "–", f"{tree['step']:,}",
        )  # fmt: skip
    return table


def _in_words(task: TaskConfig) -> str:
    """Describe a task in words: ``decision tree of depth 2``, ``linear regression, signs``."""
    words = task.name.replace("_", " ")
    words += f" of depth {task.depth}" if task.depth else ""
    words += f": {', '.join(task.tables)}" if task.tables else ""
    return words + (", signs" if task.labels == "sign" else "")


def plan_table(planned: Iterable[Planned]) -> Table:
    """Tabulate what a sweep would do with each model."""
    words = {"new": "train", "resume": "go on", "done": "is there", "differs": "is there, configured otherwise"}
    table = titled("models of the grid")
    for name in ("name", "steps", ""):
        table.add_column(name)
    for model in planned:
        table.add_row(model.name, str(model.steps), words[model.status])
    return table


def checkpoint_summary(folder: Path, cfg: AnyConfig, tree: dict[str, Any]) -> str:
    """Return everything that is known about a checkpoint as lines of text."""
    lines = [f"{folder}"]
    evaluation = tree["evaluation"]
    if evaluation is None:
        lines.append(f"in training: {tree['step']} steps done, {tree['wall_time_s']:.0f} s")
    else:
        lines += [
            f"error after {one.loops} loop{'s' * (one.loops > 1)}: {one.words}; {one.failing} of prompts above "
            f"{one.level:.2g}; mean {one.mean:.4g} ({evaluation['measure']}, {evaluation['n_prompts']} held-out "
            "prompts)"
            for one in recorded_errors(evaluation)
        ]
        right = evaluation.get("right", {})
        for length, loops, mean, low, high, accuracy in zip(*right.values(), strict=True):
            lines.append(
                f"right as a whole at length {length} after {loops} loop{'s' * (loops > 1)}: {mean:.4g} [{low:.4g}, "
                f"{high:.4g}]; {accuracy:.4g} of the answers"
            )
        lines.append(f"trained for {tree['step']} steps in {tree['wall_time_s']:.0f} s")
    for field in dataclasses.fields(cfg):
        lines.append(f"\n[{field.name}]")
        part = dataclasses.asdict(getattr(cfg, field.name))
        lines += [f"{key} = {_compact(value)}" for key, value in part.items() if value is not None]
    lines.append("\n[provenance]")
    lines += [f"{key} = {value}" for key, value in tree["provenance"].items()]
    return "\n".join(lines)


def _compact(value: Any) -> Any:
    return {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else value
