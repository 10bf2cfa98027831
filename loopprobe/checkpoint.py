"""Checkpoints: a folder with model.safetensors, config.json and metrics.jsonl; no pickle is ever written.

A name is looked up as a path, then in ./runs, then among the checkpoints that ship with the package.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from loopprobe.config import Config, build
from loopprobe.errors import LoopprobeError
from loopprobe.model import LoopedTransformer
from loopprobe.provenance import provenance
from loopprobe.storage import atomic, write_json
from loopprobe.tasks import Prompts, held_out
from loopprobe.tasks.tables import from_tables, load_table

FORMAT = 1  # of config.json; raised when an older reader would misread it
DEFAULT = "lr-b20-T10"
WEIGHTS, CONFIG, STATE, METRICS = "model.safetensors", "config.json", "state.safetensors", "metrics.jsonl"


@dataclass
class Checkpoint:
    """A trained model and what is known of it.

    Attributes:
        config: the resolved configuration.
        model: the model, in eval mode.
        step: training steps done.
        wall_time_s: seconds of training.
        evaluation: error on held-out prompts (see ``loopprobe.evaluate``); None while it trains.
        provenance: versions, commit and device of the training.
        name: the name or path that it was loaded under.
        folder: where it was loaded from.
        alias: its label, where the last part of its name does not tell it from others beside it.
    """

    config: Config
    model: LoopedTransformer
    step: int = 0
    wall_time_s: float = 0.0
    evaluation: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    folder: Path | None = None
    alias: str | None = None

    @property
    def label(self) -> str:
        """The alias, or the last part of the name: for figures and files."""
        return self.alias or Path(self.name).name or self.config.name

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the weights: which model this is."""
        content = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            content.update(name.encode())
            content.update(tensor.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def held_out(self, n_prompts: int = 1280, seed: int = 0, shift: str | None = None) -> Prompts:
        """Prompts like those at the end of its training that no training saw, on the model's device: ``xs, ys = …``.

        Args:
            n_prompts: how many.
            seed: which.
            shift: draws them otherwise, see ``tasks.shifts``.

        Raises:
            LoopprobeError: no such shift, or the model has seen as many examples or dimensions as it can read.
        """
        model, train = self.config.model, self.config.train
        points, dims = model.n_points, model.n_dims
        if train is not None:
            assert train.points.end is not None
            assert train.dims.end is not None
            unseen = {"more_examples": points > train.points.end, "more_dims": dims > train.dims.end}
            if not unseen.get(str(shift), True):
                raise LoopprobeError(
                    f"{self.label} was trained with all the {points} points and {dims} dimensions that it can read: "
                    f"shift {shift!r} needs a model that was trained with fewer"
                )
            points = points if shift == "more_examples" else train.points.end
            dims = dims if shift == "more_dims" else train.dims.end
        return held_out(self.config.task, n_prompts, points, model.n_dims, seed, active_dims=dims, shift=shift).to(
            self.device
        )

    def more_like(self, prompts: Prompts, n_prompts: int, seed: int) -> Prompts:
        """Prompts as in training, with as many points as these, that what reads states at every token is fitted on."""
        train = self.config.train
        longer = train is not None and prompts.ys.shape[1] > (train.points.end or 0)
        return self.held_out(n_prompts, seed, "more_examples" if longer else None)

    def from_table(self, name: str, target: str | None = None, n_prompts: int = 1280, seed: int = 0) -> Prompts:
        """Prompts from a table of real data, at the scale of the labels that the model was trained on.

        Args:
            name, target: of the table and its label, see ``tasks.tables.load_table``.
            n_prompts: how many, from the half of the rows that no training draws from.
            seed: which.

        Raises:
            LoopprobeError: the table cannot be used, or has too few rows.
        """
        model, train = self.config.model, self.config.train
        points = train.points.end if train and train.points.end else model.n_points
        generator = torch.Generator().manual_seed(2**31 + seed)
        scale = self.config.task.scale(model.n_dims)
        prompts = from_tables([load_table(name, target)], n_prompts, points, model.n_dims, generator, scale=scale)
        origin = prompts.origin | {"held_out_seed": seed, "n_prompts": n_prompts}
        return dataclasses.replace(prompts, origin=origin).to(self.device)


def shipped_folder() -> Path:
    """Where the shipped checkpoints lie: inside an installed wheel, or at the top of the clone."""
    package = Path(__file__).resolve().parent
    installed = package / "_checkpoints"
    return installed if installed.is_dir() else package.parent / "checkpoints"


def names() -> dict[str, Path]:
    """Every checkpoint that can be loaded by name here: those in ./runs go before shipped ones."""
    found = {}
    for folder in (shipped_folder(), Path("runs")):
        for path in sorted(folder.glob(f"*/{CONFIG}")):
            found[path.parent.name] = path.parent
    return found


def find(name: str | Path) -> Path:
    """The folder of a checkpoint, from its path or its name.

    Raises:
        LoopprobeError: there is none; the message names the nearest.
    """
    if (path := Path(name)).is_dir():
        return path
    known = names()
    if str(name) in known:
        return known[str(name)]
    near = difflib.get_close_matches(str(name), known, n=3) or list(known)
    hint = f"did you mean {' or '.join(near)}?" if near else "there is none here: train one with `loopprobe train`"
    raise LoopprobeError(f"no checkpoint is called {str(name)!r}: {hint}")


def load(name: str | Path = DEFAULT, device: str | torch.device = "cpu") -> LoopedTransformer:
    """Load a model by name or path, ready to run."""
    return load_checkpoint(name, device).model


def load_checkpoint(name: str | Path = DEFAULT, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a model with its configuration and history.

    Raises:
        LoopprobeError: it is missing, damaged, of a newer version, or its weights do not fit its configuration.
    """
    folder = find(name)
    config, tree = read_json(folder)
    model = LoopedTransformer(config.model)
    tensors = _read_tensors(folder / WEIGHTS)
    _fit(model, tensors, folder / WEIGHTS, f"{CONFIG} and {WEIGHTS} are of different models")
    return Checkpoint(
        config,
        model.to(device).eval(),
        step=tree["step"],
        wall_time_s=tree["wall_time_s"],
        evaluation=tree["evaluation"],
        provenance=tree["provenance"],
        name=str(name),
        folder=folder,
    )


def save(checkpoint: Checkpoint, folder: Path, *, weights: bool = True) -> None:
    """Write model.safetensors and config.json into an existing folder, each whole or not at all.

    Args:
        checkpoint: what is written.
        folder: where to.
        weights: False writes config.json alone, beside weights that are there.
    """
    model = checkpoint.model
    parameter = next(model.parameters())
    if weights:
        with atomic(folder / WEIGHTS) as partial:
            save_file(_contiguous(model.state_dict()), partial)
    recorded = checkpoint.provenance or provenance(parameter.device, parameter.dtype)
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "config": checkpoint.config.to_dict(),
            "step": checkpoint.step,
            "wall_time_s": checkpoint.wall_time_s,
            "evaluation": checkpoint.evaluation,
            "provenance": recorded,
        },
    )


# The state of a run in training


def save_state(
    folder: Path,
    model: LoopedTransformer,
    optimizers: list[torch.optim.Optimizer],
    generator: torch.Generator,
    step: int,
    seconds: float,
    pending: Float[Tensor, "step 2"],
) -> None:
    """Write all that the next training step and the next row of metrics depend on, whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {"generator": generator.get_state(), "pending": pending}
    for i, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{parameter}.{key}": value for key, value in values.items()}
    with atomic(folder / STATE) as partial:
        save_file(_contiguous(tensors), partial, metadata={"step": str(step), "seconds": str(seconds)})


def read_state(
    folder: Path,
    model: LoopedTransformer,
    optimizers: list[torch.optim.Optimizer],
    generator: torch.Generator,
) -> tuple[int, float, Float[Tensor, "step 2"]] | None:
    """Put a saved state back in place; returns its step, its seconds and what was pending, or None if there is none."""
    path = folder / STATE
    if not path.exists():
        return None
    tensors = _read_tensors(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    _fit(model, weights, path, f"it is not of the model in {CONFIG}")
    generator.set_state(tensors["generator"])
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, *rest = name.split(".")
            if kind == "optimizer" and int(rest[0]) == i:
                state.setdefault(int(rest[1]), {})[rest[2]] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    pending = tensors.get("pending", torch.empty(0, 2))  # states of earlier versions have written it as a row
    return int(metadata["step"]), float(metadata["seconds"]), pending


def remove_state(folder: Path) -> None:
    """Delete the training state of a run that has ended."""
    (folder / STATE).unlink(missing_ok=True)


# Reading with a clear line where something is wrong


def read_json(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The configuration of a checkpoint and everything that its config.json records, without the weights."""
    path = folder / CONFIG
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        version = tree["format"]
        if version > FORMAT:
            raise LoopprobeError(
                f"{path} has format {version} but this loopprobe reads up to {FORMAT}: upgrade loopprobe"
            )
        for key in ("config", "step", "wall_time_s", "evaluation", "provenance"):
            tree[key]
    except FileNotFoundError:
        raise LoopprobeError(f"{folder} is no checkpoint: it has no {CONFIG}; give another name or path") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise LoopprobeError(f"{path} is damaged ({error!r}): restore it or train the model again") from None
    return build(Config, tree["config"]), tree


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise LoopprobeError(f"{path} is missing: restore it or train the model again") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise LoopprobeError(f"{path} is damaged ({error}): restore it or train the model again") from None


def _fit(model: LoopedTransformer, tensors: dict[str, Tensor], path: Path, reason: str) -> None:
    """Load weights that must match the model's names and shapes exactly."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise LoopprobeError(
                f"{path} does not fit: {name} is {found.get(name, 'missing')} there and "
                f"{expected.get(name, 'not expected')} in the model; {reason}"
            )
    dtypes = {tensor.dtype for tensor in tensors.values()}
    model.to(dtypes.pop() if len(dtypes) == 1 else torch.float32)
    model.load_state_dict(tensors)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
