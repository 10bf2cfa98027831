"""Verbs that make models and tell of them: train, sweep, list, evaluate, import, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from loopprobe.cli.options import (
    Cpus,
    Device,
    Dtype,
    Engine,
    Gpus,
    Overwrite,
    OwnTask,
    TrustRemoteCode,
    cluster_of,
    named,
    register,
)
from loopprobe.cli.output import say
from loopprobe.cli.parsing import at_least
from loopprobe.errors import LoopprobeError

IMPORT_PROMPTS = 64  # that an imported model is evaluated on: seconds, also for twelve layers


def train(
    config: Annotated[Path | None, typer.Argument(help="TOML file with [model], [task] and [train].")] = None,
    preset: Annotated[str | None, typer.Option(help="A configuration that ships with loopprobe: reference, …")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Short for --set task.name=…: addition, decision_tree, …; or one of your own: FILE.py:NAME or "
            "package.module:NAME, whose parameters are --set task.parameters.NAME=…"
        ),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, such as train.steps=500.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/ and a name.")] = None,
    device: Annotated[str | None, typer.Option(help="Short for --set train.device=…")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Overwrite = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Also log to wandb, offline, inside the folder.")] = False,
) -> None:
    """Train a looped transformer (by default, lr-b20-T10)."""
    from loopprobe.config.sources import load_config, refuse_conflicts

    overrides = [*(set_ or []), *([f"train.device={device}"] if device else [])]
    if resume and task is not None:
        register([task])
    elif task is not None:
        overrides.append(f"task.name={task}")
    refuse_conflicts(overrides)
    cfg = load_config(config, preset, overrides)
    folder = out or Path("runs") / cfg.name
    given = config is not None or preset is not None or bool(overrides)
    from loopprobe.support.progress import training_progress
    from loopprobe.training.train import start, train_runs

    run = start(cfg if given or not resume else None, folder, resume=resume, overwrite=overwrite)
    with training_progress(run.train.steps, f"training {folder}", run.step) as report_progress:
        sinks = [report_progress]
        if wandb:
            from loopprobe.support.tracking import wandb_offline

            sinks.append(wandb_offline(folder))

        def report(row: dict[str, float]) -> None:
            for sink in sinks:
                sink(row)

        run.report = report
        try:
            train_runs([run])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"saved; go on with: loopprobe train --resume --out {folder}") from None
    show_checkpoint(str(folder))


def sweep(
    grids: Annotated[
        list[Path], typer.Argument(help="Grid files: [[grid]] tables of section.key = value or [values].")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the models, one folder each.")] = Path("runs"),
    workers: Annotated[int, typer.Option(help="Models at a time; the threads are divided among them.")] = 1,
    stack: Annotated[
        int | None,
        typer.Option(help="Models of the same shapes to train as one; by default 1, or up to 16 on a GPU."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    engine: Engine = "local",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
) -> None:
    """Train the models of a grid that are not there yet."""
    for option, value in (("workers", workers), ("stack", stack)):
        if value is not None and value < 1:
            raise LoopprobeError(f"{option} ({value}) must be at least 1: raise it")
    from loopprobe.show.tables.models import checkpoint_table, plan_table
    from loopprobe.store.record import read_json
    from loopprobe.support.progress import sweep_progress
    from loopprobe.training.sweep import plan, read_grid
    from loopprobe.training.sweep import sweep as run_sweep

    read = [read_grid(path) for path in grids]
    for note in dict.fromkeys(note for _, notes in read for note in notes):
        say(sentences=[note])
    planned = plan({config: name for configs, _ in read for config, name in configs.items()}, out)
    if dry_run:
        say([plan_table(planned)])
        return
    for model in planned:
        if model.status == "differs":
            say(sentences=[f"{model.folder} was trained with another configuration: left as it is"])
    todo = {model.name: model.steps for model in planned if model.todo}
    cluster = cluster_of(engine, cpus, gpus) if todo else None
    with sweep_progress(todo) as report:
        run_sweep(planned, workers, report, stack=stack, cluster=cluster)
    there = [model for model in planned if model.status != "differs"]
    say([checkpoint_table([(model.name, *read_json(model.folder)) for model in there])])


def list_(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table for a page in Markdown.")] = False,
) -> None:
    """List the checkpoints that can be given by name."""
    from loopprobe.show.tables.models import checkpoint_tables
    from loopprobe.show.tables.plain import markdown as as_markdown
    from loopprobe.store.record import read_json
    from loopprobe.store.shipped import names

    tables = checkpoint_tables((name, *read_json(folder)) for name, folder in names().items())
    if markdown:
        say(sentences=map(as_markdown, tables))
    else:
        say(tables)


def show_checkpoint(name: str) -> None:
    """Say all that is known of a checkpoint."""
    from loopprobe.show.tables.models import checkpoint_summary
    from loopprobe.store.record import read_json
    from loopprobe.store.shipped import find

    folder = find(name)
    cfg, tree = read_json(folder)
    known = {"folder": str(folder), **cfg.to_dict(), "evaluation": tree["evaluation"], "provenance": tree["provenance"]}
    say(sentences=[checkpoint_summary(folder, cfg, tree)], checkpoint=known)


def inspect_(
    name: Annotated[
        str,
        typer.Argument(help="Checkpoint, hf:NAME, hf:NAME@REVISION, hf:FOLDER, or FILE.py:NAME.", autocompletion=named),
    ],
    tokens: Annotated[int, typer.Option(help="Length of the prompt that shapes and memory are told for.")] = 128,
    device: Device = "cpu",
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show what a model is made of: its loop, its hook points, and what probes can use."""
    at_least(tokens, 1, "tokens")
    from loopprobe.show.tables.inspection import diagram, inspection_tables
    from loopprobe.store.checkpoint import load_checkpoint
    from loopprobe.store.inspection import inspect
    from loopprobe.support.device import pick_device
    from loopprobe.wrapped.loading import PREFIX

    options = {"dtype": dtype, "trust_remote_code": trust_remote_code} if name.startswith(PREFIX) else {}
    found = inspect(load_checkpoint(name, pick_device(device), **options), tokens)
    say(sentences=[f"\n{diagram(found)}\n"])
    say(inspection_tables(found))


def import_(
    file: Annotated[Path, typer.Argument(help="Weights in nanoGPT's layout or TransformerLens's names.")],
    n_heads: Annotated[int | None, typer.Option(help="Attention heads, which nanoGPT's weights do not tell.")] = None,
    n_loops: Annotated[
        int | None, typer.Option(help="Loops that it was trained with; 1 for an ordinary transformer.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default runs/ and the file's name.")] = None,
    injection: Annotated[str | None, typer.Option(help="add, multiply or none; by default add.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Task that it was trained on: of tokens, parity, …; or your own, FILE.py:NAME; by default "
            "linear_regression."
        ),
    ] = None,
    n_points: Annotated[
        int | None, typer.Option(help="Points of a prompt; by default what fits its positions.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Other fields: model.act_fn=gelu, model.rotary_base=500, task.length=8, …"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Import a model that was trained elsewhere.

    A file that export wrote tells everything itself.
    """
    from loopprobe.config.sources import refuse_conflicts, with_overrides
    from loopprobe.store.checkpoint import save
    from loopprobe.store.evaluate import evaluate
    from loopprobe.store.foreign import read_checkpoint
    from loopprobe.support.storage import claim_new, hold

    options = {"model.n_heads": n_heads, "model.n_loops": n_loops, "model.injection": injection, "task.name": task,
               "model.n_points": n_points}  # fmt: skip
    overrides = [*(set_ or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
    refuse_conflicts(overrides)
    checkpoint = read_checkpoint(file, with_overrides({}, overrides))
    checkpoint.evaluation = evaluate(checkpoint, n_prompts=IMPORT_PROMPTS)
    folder = hold(claim_new(out or Path("runs") / file.stem, overwrite))
    save(checkpoint, folder)
    show_checkpoint(str(folder))


def evaluate_(
    names: Annotated[list[str], typer.Argument(help="Checkpoint names or paths.", autocompletion=named)],
    prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = 1280,
    seed: Annotated[int, typer.Option(help="Seed of the held-out prompts.")] = 0,
    far: Annotated[
        int, typer.Option(help="Also the error after so many loops, where the model is looped; 0: not.")
    ] = 500,
    device: Device = "auto",
    task: OwnTask = None,
) -> None:
    """Measure the errors that list and show tell, and record them.

    A training ends with the error after its own loop count alone.
    """
    at_least(prompts, 1, "prompts")
    at_least(seed, 0, "seed")
    at_least(far, 0, "far")
    register(task)
    from loopprobe.store.checkpoint import load_checkpoint, save
    from loopprobe.store.evaluate import evaluate
    from loopprobe.store.shipped import find
    from loopprobe.support.device import pick_device
    from loopprobe.support.progress import track

    where = pick_device(device)
    checkpoints = [load_checkpoint(find(name), where) for name in names]
    for checkpoint in checkpoints:
        if checkpoint.evaluation is None:
            raise LoopprobeError(
                f"{checkpoint.label} is still in training: end it with `loopprobe train --resume --out "
                f"{checkpoint.folder}` first"
            )
    for checkpoint in track("evaluate")(checkpoints):
        checkpoint.evaluation = evaluate(checkpoint, n_prompts=prompts, seed=seed, far=far or None)
        save(checkpoint, checkpoint.folder, weights=False)
        show_checkpoint(str(checkpoint.folder))


def export(
    name: Annotated[str, typer.Argument(help="Checkpoint name or path.", autocompletion=named)],
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default NAME.transformer-lens.safetensors.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Export weights under TransformerLens's names, with what import needs to know of the model and its task."""
    from loopprobe.store.checkpoint import load_checkpoint
    from loopprobe.store.foreign import write_transformer_lens

    path = out or Path(f"{Path(name).name}.transformer-lens.safetensors")
    if path.exists() and not overwrite:
        raise LoopprobeError(f"{path} exists: give another --out or add --overwrite")
    checkpoint = load_checkpoint(name)
    write_transformer_lens(checkpoint.model, path, checkpoint.config.task)
    say(files=[path])


VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "sweep": sweep,
    "list": list_,
    "inspect": inspect_,
    "import": import_,
    "evaluate": evaluate_,
    "export": export,
}
