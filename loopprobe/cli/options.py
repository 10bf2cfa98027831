"""Options that several verbs share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopprobe.errors import LoopprobeError

if TYPE_CHECKING:
    import torch

    from loopprobe.cluster import Processes, RayPool

Ckpt = Annotated[list[str] | None, typer.Option("--ckpt", help="Checkpoint name or path; repeat for several.")]
Prompts = Annotated[int, typer.Option(help="Held-out prompts.")]
Seed = Annotated[int, typer.Option(help="Seed of the held-out prompts.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer prompts and options, as the questions say.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the best that is here.")]
Out = Annotated[Path | None, typer.Option(help="Output folder; by default a new one under results/.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Empty the output folder first if it exists.")]
Png = Annotated[bool, typer.Option("--png", help="Also write the figure as PNG (needs loopprobe[png] and a Chrome).")]


ShiftedBy = Annotated[str | None, typer.Option(help="Draw the prompts otherwise: see `loopprobe shift --help`.")]
Data = Annotated[str | None, typer.Option(help="Take the prompts from a table: CSV, parquet, or a name such as wine.")]
Target = Annotated[str | None, typer.Option(help="With --data: the column that is the label.")]


Loops = Annotated[int | None, typer.Option(help="Loops to run; by default as many as each model was trained with.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Models at a time, which share the threads; by default up to 4 on a CPU, and 1 on a GPU."),
]
Engine = Annotated[str, typer.Option(help="Where jobs run: local, or ray for a Ray cluster (needs loopprobe[ray]).")]
Cpus = Annotated[float, typer.Option(help="With --engine ray: processors of one job.")]
Gpus = Annotated[float, typer.Option(help="With --engine ray: GPUs of one job; 0.25 puts four on each.")]


@dataclasses.dataclass(frozen=True)
class Common:
    """The options of every verb that puts a probe to checkpoints."""

    ckpt: list[str] | None
    prompts: int
    seed: int
    out: Path | None
    overwrite: bool
    png: bool
    device: str
    shift: str | None
    data: str | None
    target: str | None


_COMMON = {
    "ckpt": (Ckpt, None), "prompts": (Prompts, 1280), "seed": (Seed, 0), "out": (Out, None),
    "overwrite": (Overwrite, False), "png": (Png, False), "device": (Device, "auto"),
    "shift": (ShiftedBy, None), "data": (Data, None), "target": (Target, None),
}  # fmt: skip


def with_common(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the verb gets the common options after its own, and is handed them as ``common``.

    Args:
        defaults: of common options, where the verb has others.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name != "common"]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, default), annotation=kind
            )
            for name, (kind, default) in _COMMON.items()
        ]

        @functools.wraps(verb)
        def command(**values: Any) -> None:
            verb(common=Common(**{name: values.pop(name) for name in _COMMON}), **values)

        command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]  # what typer reads
        return command

    return decorate


def parse_numbers(text: str, option: str) -> list[int]:
    """``10``, ``5,10,20``, ``0:31`` (both ends included), ``0:30:5``, or several of these with commas between."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            bounds = [int(bound) for bound in part.split(":")]
            if len(bounds) == 1:
                numbers += bounds
            else:
                start, stop, stride = (*bounds, 1)[:3]
                numbers += list(range(start, stop + 1, stride))
        if not numbers or min(numbers) < 0:
            raise ValueError
    except ValueError:
        raise LoopprobeError(
            f"{option} ({text!r}) must be whole numbers from 0: 10, or 5,10,20, or a range 0:31"
        ) from None
    return sorted(set(numbers))


def parse_words(text: str) -> tuple[str, ...]:
    """``a,b`` as ("a", "b")."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def pool_of(
    workers: int | None, device: torch.device, engine: str = "local", cpus: float = 1, gpus: float = 0
) -> AbstractContextManager[Processes | RayPool | None]:
    """What answers several models at once: processes, the Ray cluster where that is the engine, or nothing."""
    if workers is not None and workers < 1:
        raise LoopprobeError(f"workers ({workers}) must be at least 1: raise it")
    if (cluster := cluster_of(engine, cpus, gpus)) is not None:
        return cluster
    from loopprobe.cluster import Processes

    chosen = workers or (min(4, os.cpu_count() or 1) if device.type == "cpu" else 1)
    return nullcontext() if chosen == 1 else Processes(chosen, device=str(device))


def cluster_of(engine: str, cpus: float, gpus: float) -> RayPool | None:
    """The Ray cluster, where that is the engine."""
    if engine == "local":
        return None
    if engine != "ray":
        raise LoopprobeError(f"no engine is called {engine!r}: choose local or ray")
    from loopprobe.cluster import RayPool

    return RayPool(cpus, gpus)


def output_folder(name: str, out: Path | None, overwrite: bool) -> Path:
    """The folder that was asked for, or a new one of this name under results/."""
    from loopprobe.storage import fresh_folder, new_folder

    return fresh_folder(Path("results"), name) if out is None else new_folder(out, overwrite)
