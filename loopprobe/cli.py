"""The command line. Heavy imports stand inside the functions, so that --help answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import loopprobe
from loopprobe.errors import LoopprobeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train looped transformers and probe what happens in every loop.",
)

Ckpt = Annotated[list[str] | None, typer.Option("--ckpt", help="Checkpoint name or path; repeat for several.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the best that is here.")]
Out = Annotated[Path | None, typer.Option(help="Output folder; by default a new one under results/.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Empty the output folder first if it exists.")]
Png = Annotated[bool, typer.Option("--png", help="Also write the figure as PNG (needs loopprobe[png] and a Chrome).")]


# The base of what typer raises for a wrong command line; typer itself exports only this child of it.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Entry point: a mistake of the user is one line and exit code 2; --debug shows the traceback."""
    try:
        code = app(args=[arg for arg in sys.argv[1:] if arg != "--debug"], standalone_mode=False)
    except (LoopprobeError, _USAGE_ERROR) as error:
        if "--debug" in sys.argv:
            raise
        message = str(error)
        if isinstance(error, _USAGE_ERROR):
            message = f"{error.format_message()} (given: {' '.join(sys.argv[1:])}; see --help)"  # type: ignore[attr-defined]
        print(f"loopprobe: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print(f"loopprobe: unexpected {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _version(show: bool) -> None:
    if show:
        print(f"loopprobe {loopprobe.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback where an error would be one line.")] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="TOML file with [model], [task] and [train].")] = None,
    preset: Annotated[str | None, typer.Option(help="A configuration that ships with loopprobe: reference, …")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, such as train.steps=500.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/ and a name.")] = None,
    device: Annotated[str | None, typer.Option(help="Short for --set train.device=…")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Overwrite = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Also log to wandb, offline, inside the folder.")] = False,
) -> None:
    """Train a looped transformer; without arguments, the model that the probes use by default."""
    from loopprobe.settings import load_config

    overrides = [*(set_ or []), *([f"train.device={device}"] if device else [])]
    cfg = load_config(config, preset, overrides)
    folder = out or Path("runs") / cfg.name
    given = config is not None or preset is not None or bool(overrides)
    from loopprobe.progress import training_progress
    from loopprobe.train import train as run_training

    steps = cfg.train.steps if cfg.train else 0
    with training_progress(steps, f"training {folder}") as report_progress:
        sinks = [report_progress]
        if wandb:
            from loopprobe.tracking import wandb_offline

            sinks.append(wandb_offline(folder))

        def report(row: dict[str, float]) -> None:
            for sink in sinks:
                sink(row)

        try:
            run_training(
                cfg if given or not resume else None, folder, resume=resume, overwrite=overwrite,
                report=report,
            )  # fmt: skip
        except KeyboardInterrupt:
            print(f"stopped and saved; go on with: loopprobe train --resume --out {folder}", file=sys.stderr)
            raise
    show(str(folder))


@app.command()
def sweep(
    grids: Annotated[
        list[Path], typer.Argument(help="Grid files: [[grid]] tables of section.key = value or [values].")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the models, one folder each.")] = Path("runs"),
    workers: Annotated[int, typer.Option(help="Models at a time; the threads are divided among them.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Train the models of a grid that are missing; go on with those that were interrupted."""
    if workers < 1:
        raise LoopprobeError(f"workers ({workers}) must be at least 1: raise it")
    from loopprobe.checkpoint import read_json
    from loopprobe.progress import sweep_progress
    from loopprobe.sweep import plan, read_grid
    from loopprobe.sweep import sweep as run_sweep
    from loopprobe.tables import checkpoint_table, plan_table, show_table

    read = [read_grid(path) for path in grids]
    for note in dict.fromkeys(note for _, notes in read for note in notes):
        print(note)
    planned = plan(list(dict.fromkeys(config for configs, _ in read for config in configs)), out)
    if dry_run:
        show_table(plan_table(planned))
        return
    for model in planned:
        if model.status == "differs":
            print(f"{model.folder} was trained with another configuration: left as it is")
    with sweep_progress({model.name: model.steps for model in planned if model.todo}) as report:
        run_sweep(planned, workers, report)
    there = [model for model in planned if model.status != "differs"]
    show_table(checkpoint_table([(model.name, *read_json(model.folder)) for model in there]))


@app.command("list")
def list_() -> None:
    """List the checkpoints that can be given by name."""
    from loopprobe.checkpoint import names, read_json
    from loopprobe.tables import checkpoint_table, show_table

    show_table(checkpoint_table([(name, *read_json(folder)) for name, folder in names().items()]))


@app.command()
def show(name: Annotated[str, typer.Argument(help="Checkpoint name or path.")]) -> None:
    """Show a checkpoint: configuration, error, where it comes from."""
    from loopprobe.checkpoint import find, read_json
    from loopprobe.tables import checkpoint_summary

    folder = find(name)
    print(checkpoint_summary(folder, *read_json(folder)))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Weights in nanoGPT's layout or TransformerLens's names.")],
    n_heads: Annotated[int, typer.Option(help="Attention heads, which no weight tells.")],
    n_loops: Annotated[int, typer.Option(help="Loops that it was trained with; 1 for an ordinary transformer.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; by default runs/ and the file's name.")] = None,
    injection: Annotated[str, typer.Option(help="add, multiply or none.")] = "add",
    task: Annotated[str, typer.Option(help="Task that it was trained on.")] = "linear_regression",
    n_points: Annotated[
        int | None, typer.Option(help="Points of a prompt; by default what fits its positions.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Import a looped or ordinary model that was trained elsewhere."""
    from loopprobe.checkpoint import Checkpoint, save
    from loopprobe.config import Config, TaskConfig, build
    from loopprobe.evaluate import evaluate
    from loopprobe.foreign import read_model
    from loopprobe.storage import new_folder

    points = {} if n_points is None else {"n_points": n_points}
    model = read_model(file, n_heads=n_heads, n_loops=n_loops, injection=injection, **points)
    cfg = Config(model=model.cfg, task=build(TaskConfig, {"name": task}), train=None)
    checkpoint = Checkpoint(cfg, model)
    checkpoint.evaluation = evaluate(checkpoint)
    folder = new_folder(out or Path("runs") / file.stem, overwrite)
    save(checkpoint, folder)
    show(str(folder))


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Checkpoint name or path.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default NAME.transformer-lens.safetensors.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Export a model's weights under TransformerLens's names."""
    from loopprobe.checkpoint import load
    from loopprobe.foreign import write_transformer_lens

    path = out or Path(f"{Path(name).name}.transformer-lens.safetensors")
    if path.exists() and not overwrite:
        raise LoopprobeError(f"{path} exists: give another --out or add --overwrite")
    write_transformer_lens(load(name), path)
    print(path)


@app.command()
def mask(
    mode: Annotated[str, typer.Option(help="Keep the first or the last positions of the state.")] = "first",
    n: Annotated[str, typer.Option("--n", help="How many: 10, or 5,10,20, or 0:31 (both ends), or 0:30:5.")] = "10",
    loops: Annotated[
        str, typer.Option(help="Loop counts to show, such as 10,50; the largest is how far it runs.")
    ] = "50",
    ckpt: Ckpt = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = 1280,
    seed: Annotated[int, typer.Option(help="Seed of the held-out prompts.")] = 0,
    fill: Annotated[
        str, typer.Option(help="What replaces the state: initial, zero, or mean (of the clean run).")
    ] = "initial",
    every_loop: Annotated[bool, typer.Option("--every-loop/--once", help="Mask before every loop, or once.")] = True,
    at: Annotated[
        int | None, typer.Option(help="With --once: mask after this many loops; default: as trained.")
    ] = None,
    unit: Annotated[str, typer.Option(help="What n counts: point (two tokens) or token.")] = "point",
    invert: Annotated[bool, typer.Option("--invert", help="Mask the named positions and keep the others.")] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    png: Png = False,
    device: Device = "auto",
) -> None:
    """Mask the state between loops and see how the prediction error depends on what is kept."""
    numbers, loop_counts = parse_numbers(n, "--n"), parse_numbers(loops, "--loops")
    if at is not None and every_loop:
        raise LoopprobeError(f"--at ({at}) goes with --once: add --once or drop --at")
    from loopprobe.checkpoint import DEFAULT, load_checkpoint
    from loopprobe.config import build
    from loopprobe.figures import mask_figure, write_html, write_png
    from loopprobe.probes import mask as probe
    from loopprobe.progress import track
    from loopprobe.results import write_dataset
    from loopprobe.storage import fresh_folder, new_folder
    from loopprobe.tables import mask_finding, mask_table, show_table
    from loopprobe.train import pick_device

    where = pick_device(device)
    checkpoints = [load_checkpoint(name, where) for name in ckpt or [DEFAULT]]
    runs = []
    for checkpoint in checkpoints:
        once_at = None if every_loop else checkpoint.config.model.n_loops if at is None else at
        config = build(
            probe.MaskConfig,
            {
                "mode": mode, "n": tuple(numbers), "loops": max(loop_counts), "unit": unit, "invert": invert,
                "fill": fill, "once_at": once_at,
            },
        )  # fmt: skip
        probe.check(checkpoint, config)
        runs.append((checkpoint, config, checkpoint.held_out(prompts, seed)))
    label = checkpoints[0].label if len(checkpoints) == 1 else f"{len(checkpoints)}-models"
    name = f"mask-{mode}-{label}"
    folder = fresh_folder(Path("results"), name) if out is None else new_folder(out, overwrite)
    paths = []
    for checkpoint, config, batch in runs:
        data = probe.run(checkpoint, batch, config, track(f"masking {checkpoint.label}"))
        show_table(mask_table(data, loop_counts if len(loop_counts) > 1 else None))
        print(mask_finding(data))
        stem = "mask" if len(runs) == 1 else f"mask-{checkpoint.label}"
        figure = mask_figure(data)
        write_dataset(data, folder / f"{stem}.nc")
        write_html(figure, folder / f"{stem}.html")
        if png:
            write_png(figure, folder / f"{stem}.png")
        paths += sorted(folder.glob(f"{stem}.*"))
    for path in paths:
        print(path)


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
