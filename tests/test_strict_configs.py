"""Every configuration takes values of exactly its types."""

import dataclasses
import typing

import numpy as np
import pytest

from loopprobe.config.schema import Config, ModelConfig, Schedule, TaskConfig, TrainConfig
from loopprobe.config.selection import Choice
from loopprobe.config.sources import load_config, refuse_conflicts
from loopprobe.config.strict import LARGEST, build
from loopprobe.errors import LoopprobeError
from loopprobe.model.stream import CacheConfig
from loopprobe.probes.exit import ExitConfig
from loopprobe.probes.mask import MaskConfig
from loopprobe.probes.questions import Question
from loopprobe.probes.registry import PROBES
from loopprobe.study.saved import Saved

CLASSES = [ModelConfig, TaskConfig, TrainConfig, Schedule, Question, Saved, CacheConfig]
CLASSES += sorted({probe.config for probe in PROBES.values()}, key=str)
NEEDED = {
    Question: {"probe": "mask"},
    Saved: {"section": "s", "title": "t", "asks": "a", "probe": "mask", "checkpoints": ["x"]},
    CacheConfig: {"loops": [0]},
}
WRONG = {
    int: [True, "1", 1.0, 1.5, [1], {}, LARGEST + 1, float("nan"), 10**5000],
    float: [True, "1", [1.0], {}, float("inf"), float("nan")],
    bool: [0, 1, "yes", "true", 1.0],
    str: [1, True, b"x", ["x"]],
    Choice: [True, 1.5, {}, [1.5], [True], [[1]], float("nan"), 10**5000],
}


def scalars(hint):
    """The scalar type of a hint, and whether it is an item of a tuple; None where it is another."""
    origin = typing.get_origin(hint)
    if hint in WRONG:
        return hint, False
    if origin is typing.Annotated:
        return scalars(typing.get_args(hint)[0])
    if origin is tuple:
        inner = scalars(typing.get_args(hint)[0])
        return None if inner is None else (inner[0], True)
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return (
        scalars(parts[0]) if origin is not None and origin not in (dict, typing.Literal) and len(parts) == 1 else None
    )


def cases():
    for cls in CLASSES:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            args = typing.get_args(hint)
            parts = [part for part in args if part is not type(None)]
            if {int, str} <= set(parts):  # numbers, ranges and names
                yield pytest.param(cls, field.name, Choice, False, id=f"{cls.__name__}.{field.name}")
                continue
            if type(None) in args:
                hint = parts[0]
            if (kind := scalars(hint)) is not None:
                yield pytest.param(cls, field.name, *kind, id=f"{cls.__name__}.{field.name}")


@pytest.mark.parametrize(("cls", "name", "kind", "several"), list(cases()))
def test_no_value_of_another_type_is_taken(cls, name, kind, several):
    for wrong in WRONG[kind]:
        for make in (lambda tree: cls(**tree), lambda tree: build(cls, tree)):
            with pytest.raises(LoopprobeError, match=name) as error:
                make(NEEDED.get(cls, {}) | {name: [wrong] if several else wrong})
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 300


def test_there_are_fields_of_every_kind():
    found = [case.values for case in cases()]
    assert {kind for _, _, kind, _ in found} == set(WRONG)
    assert len(found) > 60
    assert {several for *_, several in found} == {True, False}


def test_lists_whole_numbers_and_numpy_are_welcome():
    assert MaskConfig(n=[np.int64(3), 2]).n == (3, 2)
    assert type(MaskConfig(n=[np.int64(3)]).n[0]) is int
    assert ExitConfig(state_steps=[1, np.float32(0.5)]).state_steps == (1.0, 0.5)
    assert build(Config, {"train": {"betas": [0.5, 0.6], "dims": 4}}).train.betas == (0.5, 0.6)


def test_a_configuration_stays_frozen_and_takes_keywords_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().n_loops = 3
    with pytest.raises(TypeError):
        ModelConfig(3)
    with pytest.raises(LoopprobeError, match="unknown config key 'n_lops': did you mean n_loops"):
        ModelConfig(n_lops=3)


@pytest.mark.parametrize("tree", [5, None, [], "x", [("model", {})]])
def test_what_is_no_table_is_no_configuration(tree):
    with pytest.raises(LoopprobeError, match=r"the configuration .* must be a table"):
        build(Config, tree)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.steps=1", "train.steps=1"],
        ["train.dims=3", "train.dims.end=4"],
        ["train.dims.end=4", "train.dims=3"],
        ["train={steps=3}", "train.seed=1"],
    ],
)
def test_overrides_that_speak_of_the_same_value_are_refused(overrides):
    with pytest.raises(LoopprobeError, match="once"):
        refuse_conflicts(overrides)
    refuse_conflicts(["train.steps=3", "train.seed=1", "train.dims=4", "model.n_dims=30"])


def test_what_is_missing_is_named():
    with pytest.raises(LoopprobeError, match=r"^probe is missing: give it a value$"):
        Question()
    with pytest.raises(LoopprobeError, match=r"^train.betas.1 is missing: give it a value$"):
        load_config(overrides=["train.betas=[0.9]"])
