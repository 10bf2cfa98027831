"""Every token task has a preset, and what does not fit a shorter length is mended by what the error says."""

import re

import pytest

from loopprobe.config.sources import load_config, preset_names
from loopprobe.errors import LoopprobeError
from loopprobe.tasks.registry import SHIPPED, find

TOKEN_TASKS = [name for name in SHIPPED if find(name).reads_tokens]


def test_every_token_task_has_a_preset_that_loops():
    assert set(TOKEN_TASKS) <= set(preset_names())
    assert all(load_config(preset=name).model.n_loops > 1 for name in TOKEN_TASKS)


@pytest.mark.parametrize("name", TOKEN_TASKS)
@pytest.mark.parametrize("length", [1, 3])
def test_a_preset_is_made_shorter_by_what_its_error_says(name, length):
    train, overrides = load_config(preset=name).train, [f"task.length={length}"]
    if train.loops.kind == "length" or (train.length.start or 0) > length:
        with pytest.raises(LoopprobeError, match=rf"must be at most task.length \({length}\)") as error:
            load_config(preset=name, overrides=overrides)
        overrides += re.findall(r"--set (\S+?)(?=[ ,])", str(error.value))
    cfg = load_config(preset=name, overrides=overrides)
    assert (cfg.task.length, cfg.train.length.end) == (length, length)


def test_the_error_names_the_window_and_the_start_at_once():
    both = (
        r"train.loop_window \(12\) and train.length.start \(4\) must be at most task.length \(3\): "
        r"--set train.loop_window=3 --set train.length.start=3, or raise task.length$"
    )
    with pytest.raises(LoopprobeError, match=both):
        load_config(preset="s5", overrides=["task.length=3"])
    assert load_config(preset="s5").train.loop_window == 12
