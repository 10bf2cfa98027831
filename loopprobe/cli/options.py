"""Options that several verbs share."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from loopprobe.cli.parsing import at_least, one_of
from loopprobe.errors import LoopprobeError
from loopprobe.study.shipped import study_folder, toml_files
from loopprobe.types import PRECISIONS

if TYPE_CHECKING:
    import torch

    from loopprobe.support.cluster import Processes, RayPool


def named(incomplete: str) -> list[str]:
    """Complete the name of a checkpoint or of a language model that ships, for the shell."""
    from loopprobe.store.shipped import names, shipped_language_models

    known = [*names(), *(f"hf:{name}" for name in shipped_language_models())]
    return [name for name in known if name.startswith(incomplete)]


OwnTask = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="A task of your own, FILE.py:NAME or package.module:NAME, for checkpoints whose recorded one has moved or "
        "changed. Runs that file.",
    ),
]
Ckpt = Annotated[
    list[str] | None,
    typer.Option(
        "--ckpt",
        help="Checkpoint name or path; hf:NAME or hf:FOLDER of a language model; FILE.py:NAME of a wrapped module of "
        "your own, which runs that file. Repeat for several.",
        autocompletion=named,
    ),
]
Prompts = Annotated[int, typer.Option(help="Held-out prompts.")]
Seed = Annotated[int, typer.Option(help="Seed of the held-out prompts.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer prompts, seeds and options, as the questions say.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the best that is here.")]
Out = Annotated[Path | None, typer.Option(help="Output folder; by default a new one under results/.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Empty the output folder first if it exists.")]
Png = Annotated[bool, typer.Option("--png", help="Also write the figure as PNG (needs loopprobe[png] and a Chrome).")]
SHIFTS = (
    "skewed, subspace, inputs_third, inputs_double, inputs_triple, weights_third, weights_double, weights_triple, "
    "noise, orthants, orthogonal_query, repeated_query, more_examples, more_dims"
)
ShiftedBy = Annotated[str | None, typer.Option(help="Draw the prompts otherwise: see `loopprobe shift --help`.")]
Data = Annotated[str | None, typer.Option(help="Take the prompts from a table: CSV, parquet, or a name such as wine.")]
Length = Annotated[
    int | None, typer.Option(help="Token tasks: length of the prompts (bits, digits, …); default: as in training.")
]
Text = Annotated[
    list[str] | None,
    typer.Option("--text", help="Language models: a text to read; its last token is the answer. Repeat for several."),
]
TextFile = Annotated[
    str | None, typer.Option(help="Language models: a long text, read in windows of --length tokens (128).")
]
Pairs = Annotated[
    str | None, typer.Option("--pairs", help="Language models: a JSONL file with clean, corrupted, answer, wrong.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Language models: put texts through the chat template.")]
Read = Annotated[str, typer.Option(help="Language models: read the answer at the query (the last token), or all.")]
Dtype = Annotated[
    str | None, typer.Option(help="Language models: float32, bfloat16, …; default: float32 on a CPU, else as saved.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Language models: run code that comes with one. Read it first.")
]
StartSeed = Annotated[int, typer.Option(help="Language models: seed of a state that the loop starts from at random.")]
Target = Annotated[str | None, typer.Option(help="With --data: the column that is the label.")]


Loops = Annotated[
    int | None,
    typer.Option(help="Loops to run; the answer is read after the last. Default: as many as in training."),
]
Positions = Annotated[
    str | None,
    typer.Option(
        help="Tokens: numbers from 0, -1 for the last, ranges such as 0:4 (both ends), or query, inputs, labels; "
        "default: all, in recover and paths some of each kind."
    ),
]
Measure = Annotated[
    str,
    typer.Option(
        help="What is measured: error, error:K (of answer K), answer; of tokens logit_difference, margin, probability; "
        "or FILE.py:NAME, a function of outputs and prompts, which runs that file."
    ),
]
Layers = Annotated[str | None, typer.Option(help="Layers from 0, such as 0, 1:3 or last; default: all.")]
Heads = Annotated[str | None, typer.Option(help="Heads from 0, chosen alike; default: all.")]
InLoops = Annotated[
    str | None,
    typer.Option(
        help="Loops in which something is edited, from 1 as in tables, such as 5, 1:10 or last; default: all."
    ),
]
ReadLoop = Annotated[int | None, typer.Option(help="Read the answer after this loop; default: the last that runs.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Models at a time, which share the threads; by default up to 4 on a CPU, and 1 on a GPU."),
]
Engine = Annotated[str, typer.Option(help="Where jobs run: local, or ray for a Ray cluster (needs loopprobe[ray]).")]
Cpus = Annotated[float, typer.Option(help="With --engine ray: processors of one job.")]
Gpus = Annotated[float, typer.Option(help="With --engine ray: GPUs of one job; 0.25 puts four on each.")]


class Interrupted(Exception):
    """Ctrl-C, which typer would take for an exit; its text says how to go on."""


class OnceCommand(TyperCommand):
    """A command that refuses an option given twice where it takes one value: the last would win without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; Ctrl-C comes out as Interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(str(interrupt)) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            LoopprobeError: an option that takes one value comes twice.
        """
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in given:
            twice = given.count(parameter) > 1
            if twice and parameter.param_type_name == "option" and not parameter.multiple:
                raise LoopprobeError(f"{parameter.opts[0]} is given {given.count(parameter)} times: give it once")
        return super().parse_args(ctx, args)


@dataclasses.dataclass(frozen=True)
class Common:
    """The options of every verb that runs a probe on checkpoints."""

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
    length: int | None
    text: list[str] | None
    text_file: str | None
    text_pairs: str | None
    chat: bool
    read: str
    dtype: str | None
    trust_remote_code: bool
    start_seed: int

    def question(self) -> dict[str, Any]:
        """The fields of a question that these options set, the probe and its own options aside."""
        named = {
            name: getattr(self, name) for name in _COMMON if name not in ("ckpt", "out", "overwrite", "png", "device")
        }
        return named | {"text": tuple(self.text or ())} | ({"checkpoints": tuple(self.ckpt)} if self.ckpt else {})


_COMMON = {
    "ckpt": (Ckpt, None), "prompts": (Prompts, 1280), "seed": (Seed, 0), "out": (Out, None),
    "overwrite": (Overwrite, False), "png": (Png, False), "device": (Device, "auto"),
    "shift": (ShiftedBy, None), "data": (Data, None), "target": (Target, None),
    "length": (Length, None),
    "text": (Text, None), "text_file": (TextFile, None), "text_pairs": (Pairs, None), "chat": (Chat, False),
    "read": (Read, "query"), "dtype": (Dtype, None), "trust_remote_code": (TrustRemoteCode, False),
    "start_seed": (StartSeed, 0),
}  # fmt: skip


OF_PROMPTS = (
    "prompts", "seed", "shift", "data", "target", "length", "text", "text_file", "text_pairs", "chat", "read",
    "start_seed",
)  # fmt: skip


def with_common(
    *, without: Sequence[str] = (), **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the verb gets the common options after its own, and is handed them as ``common``.

    Args:
        without: common options that mean nothing to the verb, which it is handed as they are by default.
        defaults: of common options, where the verb has others.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name != "common"]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, default), annotation=kind
            )
            for name, (kind, default) in _COMMON.items()
            if name not in without
        ]

        @functools.wraps(verb)
        def command(**values: Any) -> None:
            tasks = values.pop("task")
            common = Common(**{name: values.pop(name, default) for name, (_, default) in _COMMON.items()})
            at_least(common.prompts, 1, "prompts")
            at_least(common.seed, 0, "seed")
            at_least(common.length, 1, "length")
            at_least(common.start_seed, 0, "start_seed")
            one_of(common.read, ("query", "all"), "read")
            if common.dtype is not None:
                one_of(common.dtype, PRECISIONS, "dtype")
            register(tasks)
            verb(common=common, **values)

        task = inspect.Parameter("task", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=OwnTask)
        command.__signature__ = inspect.Signature([*own, *shared, task])  # type: ignore[attr-defined]  # what typer reads
        return command

    return decorate


def register(tasks: list[str] | None) -> None:
    """Register the tasks that a person names; their files run."""
    if tasks:
        from loopprobe.tasks import register_task

        for task in tasks:
            register_task(task)


def pool_of(
    workers: int | None, device: torch.device, engine: str = "local", cpus: float = 1, gpus: float = 0
) -> AbstractContextManager[Processes | RayPool | None]:
    """Return what answers several models at once: processes, the Ray cluster where that is the engine, or nothing."""
    if workers is not None and workers < 1:
        raise LoopprobeError(f"workers ({workers}) must be at least 1: raise it")
    if (cluster := cluster_of(engine, cpus, gpus)) is not None:
        return cluster
    from loopprobe.support.cluster import Processes

    chosen = workers or (min(4, os.cpu_count() or 1) if device.type == "cpu" else 1)
    return nullcontext() if chosen == 1 else Processes(chosen, device=str(device))


def cluster_of(engine: str, cpus: float, gpus: float) -> RayPool | None:
    """The Ray cluster, where that is the engine."""
    if engine == "local":
        return None
    if engine != "ray":
        raise LoopprobeError(f"no engine is called {engine!r}: choose local or ray")
    from loopprobe.support.cluster import RayPool

    return RayPool(cpus, gpus)


def question_files(names: Sequence[str], folder: Path | None = None) -> dict[str, Path]:
    """The files of saved questions, by their names.

    Args:
        names: of questions, such as r4_last_n, or paths of TOML files.
        folder: where names are looked up; None: the study's own questions.

    Raises:
        LoopprobeError: there is no such question, or two have one name.
    """
    paths: dict[str, Path] = {}
    for name in names:
        path = Path(name)
        if path.suffix != ".toml" or not path.is_file():
            path = (folder or study_folder()) / f"{name.removesuffix('.toml')}.toml"
        if not path.is_file() or path.stem.endswith("_models"):
            known = [path.stem for path in toml_files(folder or study_folder())]
            near = difflib.get_close_matches(Path(name).stem, known, n=3) or known
            raise LoopprobeError(
                f"no saved question is {name!r}: give a TOML file, or a name such as {', '.join(near)}"
            )
        if path.stem in paths and paths[path.stem].resolve() != path.resolve():
            raise LoopprobeError(f"{path} and {paths[path.stem]} have one name: answer them one by one")
        paths[path.stem] = path
    return paths


def output_folder(name: str, out: Path | None, overwrite: bool) -> Path:
    """The folder that was asked for, or a new one of this name under results/."""
    from loopprobe.support.storage import claim_fresh, claim_new, hold

    return hold(claim_fresh(Path("results"), name) if out is None else claim_new(out, overwrite))
