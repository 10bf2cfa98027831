"""The extrapolate probe shows what theory says of the depth, where it says anything."""

import numpy as np
import pytest
import torch
from conftest import random_model

from loopprobe import probe
from loopprobe.config.sources import load_config
from loopprobe.show import present
from loopprobe.show.tables.tokens import extrapolate_table, in_words
from loopprobe.store.checkpoint import Checkpoint

ENOUGH = "enough, in theory"


def tiny(task, *overrides):
    small = ["model.d_model=8", "model.n_heads=2", "task.length=4", "train.loop_window=1", "train.length=4"]
    cfg = load_config(overrides=[f"task.name={task}", *small, *overrides])
    return Checkpoint(cfg, random_model(cfg.model, torch.float32), name=f"runs/{task}")


def measured(task, lengths, *overrides):
    checkpoint = tiny(task, *overrides)
    return probe("extrapolate", checkpoint, checkpoint.held_out(8), lengths=lengths)


def drawn(data):
    (figure,) = present.figures([data]).values()
    return figure, {trace.name: trace for trace in figure.data}


@pytest.mark.parametrize(("n_layers", "loops"), [(1, [1, 1, 2, 2, 3, 3]), (2, [1, 1, 1, 1, 2, 2])])
def test_a_product_in_s5_takes_as_many_loops_as_pairs_can_be_joined(n_layers, loops):
    data = measured("s5", (1, 2, 3, 4, 5, 8), f"model.n_layers={n_layers}")
    assert data.enough_loops.values.tolist() == loops
    assert "TC0" in data.attrs["theory"]
    figure, traces = drawn(data)
    assert traces[ENOUGH].y.tolist() == loops
    assert any("TC0" in note.text for note in figure.layout.annotations)
    table = extrapolate_table(data)
    assert [*table.columns[-1].cells] == [str(number) for number in loops]
    assert "TC0" in table.caption


def test_where_theory_gives_no_number_none_is_shown():
    data = measured("addition", (1, 2, 3))
    assert np.isnan(data.enough_loops).all()
    assert ENOUGH not in drawn(data)[1]
    assert extrapolate_table(data).columns[-1].header == "error, nats"
    assert "looking ahead for carries" in extrapolate_table(data).caption


def test_a_model_that_is_not_looped_has_no_line_of_loops_and_no_rise():
    data = measured("s5", (1, 2, 4), "model.n_layers=3", "model.n_loops=1", "train.loops.kind=constant")
    data.attrs["slope"] = 0.0  # were it right
    assert ENOUGH not in drawn(data)[1]
    assert "loops more" not in in_words(data)


def test_the_longest_length_of_the_training_is_always_measured():
    checkpoint = tiny("parity", "task.length=16", "train.loop_window=1", "model.n_ctx=40")
    lengths = probe("extrapolate", checkpoint, checkpoint.held_out(2)).length.values.tolist()
    assert lengths[0] == 1
    assert 16 in lengths
    assert lengths[-1] == 32
    assert len(lengths) == 17


def test_a_rise_of_nothing_has_no_sign():
    data = measured("s5", (1, 2))
    data.attrs["slope"] = -1e-17
    assert "; 0.00 loops more" in in_words(data)


def test_the_rule_can_be_told_from_the_darkest_and_the_lightest_colour_of_a_map():
    figure, _ = drawn(measured("s5", (1, 2, 3, 4, 5)))
    names = [trace.name for trace in figure.data]
    for name in ("loops of the training, by length", "the same rule beyond", ENOUGH):
        rim, line = (trace for trace in figure.data if trace.name == name)
        assert names.index(name) == list(figure.data).index(rim), "the rim lies below"
        assert (rim.line.color, rim.showlegend) == ("white", False)
        assert rim.line.width > line.line.width
        assert rim.y.tolist() == line.y.tolist()
