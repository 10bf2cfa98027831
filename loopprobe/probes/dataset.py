"""Results on disk: xarray datasets in netCDF, with where they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.errors import LoopprobeError
from loopprobe.store.subject import Subject
from loopprobe.support.provenance import provenance
from loopprobe.support.statistics import summarise_errors
from loopprobe.support.storage import atomic
from loopprobe.tasks import PromptBatch, Prompts, TextPrompts
from loopprobe.tasks.prompts import QUERY_UNIT, STEP_UNIT, UNIT


@dataclasses.dataclass(frozen=True)
class Stamp:
    """The record that a dataset carries of its making.

    Attributes:
        probe: the name of the probe that made it.
        options: the fields of the probe's configuration.
        checkpoint: the name or path of the model.
        weights: the digest of its weights.
        config: the model's whole configuration: ``model``, ``task`` and ``train``.
        prompts: where the prompts come from.
        provenance: versions, commit, device and precision.
        unit, query_unit, step_unit: of errors, of errors at the query, and of steps, see ``tasks.PromptBatch``.
        tokens: what each token is, in words, such as "x, y in turn".
        texts: of prompts of text the place of every token, with its text where all prompts share it.
    """

    probe: str
    options: dict[str, Any]
    checkpoint: str
    weights: str
    config: dict[str, Any]
    prompts: dict[str, Any]
    provenance: dict[str, Any]
    unit: str
    query_unit: str
    step_unit: str
    tokens: str
    texts: tuple[str, ...] = ()

    def token(self, place: int) -> str:
        """Return how the token of a place is called: by its text, or its number."""
        return self.texts[place] if 0 <= place < len(self.texts) else str(place)

    @property
    def model(self) -> dict[str, Any]:
        """The fields of the model's configuration."""
        return dict(self.config["model"])


def stamp(
    data: xr.Dataset,
    probe: str,
    subject: Subject,
    prompts: PromptBatch,
    config: Any,
    measure: tuple[str, str, str] | None = None,
) -> xr.Dataset:
    """Write into the attributes which probe made a dataset, of which model, on which prompts, how, and with what.

    ``trained_loops`` are the loops that the training gives such prompts, or would. ``prompts_digest`` tells these
    prompts from others of the same origin; datasets that share it can be compared prompt by prompt. ``files`` are the
    SHA-256 of those that options name. ``error_scale`` is
    what errors of prompts of numbers are divided by. Where something else than the error is measured, ``measure`` says
    what: its name, its name with the unit, and the source of a user's function.

    Structured attributes are JSON text, which every netCDF reader can show. The coordinate ``source`` repeats all
    attributes, for datasets that are joined along an axis: xarray keeps those of the first alone.
    """
    data.attrs |= attributes(probe, subject, prompts, config) | {"trained_loops": subject.loops_of(prompts)}
    units = [prompts.unit, prompts.query_unit, prompts.step_unit, _in_turn(prompts.roles)]
    if measure is None:
        data.attrs["failure_level"] = prompts.failure_level
    else:
        data.attrs["measure"], data.attrs["measure_source"] = measure[0], measure[2]
        units[:2] = [measure[1]] * 2
    data.attrs["units"] = json.dumps(units)
    if isinstance(prompts, Prompts):
        data.attrs["error_scale"] = prompts.scale
    if isinstance(prompts, TextPrompts):
        data.attrs["token_texts"] = json.dumps(prompts.roles)
    return data.assign_coords(source=json.dumps(data.attrs, default=_plain))


def read_stamp(data: xr.Dataset) -> Stamp:
    """Read what ``stamp`` wrote.

    Raises:
        LoopprobeError: the dataset is of no probe.
    """
    attrs = data.attrs
    if missing := sorted({"probe", "config", "checkpoint", "prompts", "provenance"} - attrs.keys()):
        raise LoopprobeError(f"this dataset has no attribute {missing[0]!r}: give what a probe of loopprobe returned")
    model = json.loads(attrs["checkpoint"])
    units = json.loads(attrs["units"]) if "units" in attrs else [UNIT, QUERY_UNIT, STEP_UNIT, "x, y in turn"]  # earlier
    return Stamp(
        attrs["probe"],
        json.loads(attrs["config"]),
        model["name"],
        model["weights"],
        model["config"],
        json.loads(attrs["prompts"]),
        json.loads(attrs["provenance"]),
        **dict(zip(("unit", "query_unit", "step_unit", "tokens"), units, strict=True)),
        texts=tuple(json.loads(attrs.get("token_texts", "[]"))),
    )


def measure_words(data: xr.Dataset) -> str:
    """Return what a dataset measures, with its unit."""
    name = str(data.attrs["measure"])
    unit = str(data.attrs.get("measure_unit") or read_stamp(data).query_unit)
    return f"{name} ({unit})" if unit and not unit.startswith(name) else unit or name


def _digest(prompts: PromptBatch) -> str:
    """Return a digest of the prompts, the same on every device and in every precision of a model."""
    found = hashlib.sha256()
    for part in prompts.tensors:
        values = part.detach().cpu().float() if part.is_floating_point() else part.detach().cpu()
        found.update(f"{tuple(values.shape)} {values.dtype}".encode() + values.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _in_turn(roles: Sequence[str]) -> str:
    """Roles of tokens in words: the shortest run that is repeated, or all of them."""
    for n in range(1, len(roles)):
        if all(role == roles[i % n] for i, role in enumerate(roles)):
            return f"{', '.join(roles[:n])} in turn" if n > 1 else f"all {roles[0]}"
    return ", ".join(roles)


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python, which JSON can hold."""
    return value.item() if hasattr(value, "item") else str(value)


def unique_labels(names: Sequence[str]) -> list[str]:
    """Label several checkpoints for figures, tables and files: the last part of each name or path.

    Where that is not unique, capitals aside, as many parts are joined by "-" as tell the paths apart; where they
    cannot, a number is added. Characters that a file name may not hold become "_".

    Args:
        names: names or paths, each of another folder.
    """
    parts = [_parts(name) for name in names]
    folded = [[part.casefold() for part in whole] for whole in parts]
    depth = [1] * len(names)

    def label(i: int) -> str:
        return re.sub(_UNSAFE, "_", "-".join(parts[i][-depth[i] :]))[-_LONGEST:]

    while True:
        now = [label(i).casefold() for i in range(len(names))]
        deeper = [
            i for i in range(len(names)) if depth[i] < len(parts[i])
            and any(now[i] == now[j] and folded[i] != folded[j] for j in range(len(names)))
        ]  # fmt: skip
        if not deeper:
            break
        for i in deeper:
            depth[i] += 1
    labels: list[str] = []
    for i in range(len(names)):
        candidate, number = label(i), 1
        while candidate.casefold() in {other.casefold() for other in labels}:
            number += 1
            candidate = f"{label(i)}-{number}"
        labels.append(candidate)
    return labels


_LONGEST = 120  # characters of a label: file systems allow 255 bytes a name
_UNSAFE = r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]+'


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path; a plain name has one."""
    path = Path(name)
    return path.parts if len(path.parts) == 1 and path.name not in ("", "..") else Path(os.path.abspath(path)).parts[1:]


def asked(probe: str, subject: Subject, prompts: PromptBatch, config: Any) -> dict[str, str]:
    """Return what is asked of whom; where it is equal, question and model are the same, and so are all files."""
    options = dataclasses.asdict(config)
    what = {
        "probe": probe,
        "config": json.dumps(options),
        "checkpoint": json.dumps(subject.identity()),
        "prompts": json.dumps(prompts.origin),
        "prompts_digest": _digest(prompts),
    }
    return what | ({"files": json.dumps(files)} if (files := _files(options.values())) else {})


def _files(options: Iterable[Any]) -> dict[str, str]:
    """Return the SHA-256 of the files that options name; ``PATH.nc:3`` names a part of one."""
    parts = [part for option in options for part in (option if isinstance(option, list | tuple) else [option])]
    named = [str(part) for part in parts if isinstance(part, str | Path)]
    places = [(name, Path(path)) for name in named for path in (name, name.rpartition(":")[0])]
    found = {}
    for name, path in places:
        with suppress(OSError, ValueError):  # a name that no file can have
            if path.is_file():
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def attributes(probe: str, subject: Subject, prompts: PromptBatch, config: Any) -> dict[str, str]:
    """Return what ``stamp`` writes: what is asked of whom, and the provenance."""
    made_by = provenance(subject.model.device, subject.model.dtype)
    return asked(probe, subject, prompts, config) | {"provenance": json.dumps(made_by)}


def with_ends(
    name: str, dims: tuple[str, ...], estimates: tuple[ndarray, ndarray, ndarray]
) -> dict[str, tuple[tuple[str, ...], ndarray]]:
    """An estimate and the ends of its interval as variables ``{name}``, ``{name}_low`` and ``{name}_high``."""
    return {name + part: (dims, values) for part, values in zip(("", "_low", "_high"), estimates, strict=True)}


def error_summary(
    dims: tuple[str, ...], errors: Float[ndarray, "... example"], level: float, prefix: str = ""
) -> dict[str, tuple[tuple[str, ...], ndarray]]:
    """Summarise errors over their last axis, the prompts, as variables; see ``statistics.summarise_errors``.

    Args:
        dims: the names of the other axes.
        errors: the errors.
        level: the error above which a prompt counts as failed (``PromptBatch.failure_level``).
        prefix: what the names begin with.

    Returns:
        Variables with these dims: ``median`` and ``failures``, each with ``_low`` and ``_high``, and ``mean``.
    """
    return {prefix + name: (dims, values) for name, values in summarise_errors(errors, level).items()}


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write as ``storage.atomic`` does; where the disk is full or the folder is gone, a line says so.

    Raises:
        LoopprobeError: the file cannot be written.
    """
    try:
        with atomic(path) as partial:
            yield partial
    except OSError as error:
        raise LoopprobeError(
            f"cannot write {path} ({error.strerror or error}): free the disk or give another folder"
        ) from None


def write_dataset(data: xr.Dataset, path: Path) -> None:
    """Write netCDF, compressed, whole or not at all.

    Raises:
        LoopprobeError: it cannot be written.
    """
    encoding = {name: {"zlib": True, "complevel": 3} for name, values in data.items() if values.dtype.kind == "f"}
    with writing(path) as partial:
        data.to_netcdf(partial, engine="h5netcdf", encoding=encoding)


def read_dataset(path: Path) -> xr.Dataset:
    """Read a dataset into memory.

    Raises:
        LoopprobeError: there is none, or it is no netCDF.
    """
    try:
        with xr.open_dataset(path, engine="h5netcdf") as data:
            return data.load()
    except FileNotFoundError:
        raise LoopprobeError(f"no results at {path}: check the path") from None
    except (OSError, ValueError) as error:
        raise LoopprobeError(f"{path} is no netCDF file ({error}): run the probe again") from None
