"""The explore probe: one prompt seen whole, clean and changed, held against runs edited by hand."""

import numpy as np
import pytest
import torch

from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, hide, zero
from loopprobe.model.masks import masked, reset
from loopprobe.probes.explore import PROBE, ExploreConfig, changeable, describe
from loopprobe.probes.session import probe
from loopprobe.show import sentences
from loopprobe.show.present import figures, table
from loopprobe.support.threads import Stopped, go_on, stoppable


def explored(checkpoint, prompts=8, **options):
    return probe("explore", checkpoint, prompts, **options)


def test_resetting_all_tokens_is_the_mask_that_keeps_none(model, prompts):
    with torch.no_grad():
        with masked(model, "first", 0):
            none = model(*prompts.inputs)
        with reset(model, None):
            assert torch.equal(model(*prompts.inputs), none)
        with masked(model, "first", 2, loops=[1]):
            first = model(*prompts.inputs)
        with reset(model, range(4, 12), loops=[1]):  # two points are four tokens
            assert torch.equal(model(*prompts.inputs), first)
    assert not model.hook_trees.busy


def test_a_reset_refuses_what_is_not_there(model, prompts):
    with pytest.raises(LoopprobeError, match="position 12 must be below 12"), reset(model, [12]):
        model(*prompts.inputs)
    with pytest.raises(LoopprobeError, match="never reached"), reset(model, [0], loops=[9]):
        model(*prompts.inputs)


def test_hidden_tokens_are_those_whose_scores_are_minus_infinity(model, prompts):
    def masked_scores(scores, hook):
        away = torch.eye(scores.shape[-1], dtype=torch.bool).logical_not()
        away[:, [i for i in range(scores.shape[-1]) if i not in (0, 5)]] = False
        return scores.masked_fill(away, -torch.inf)

    with torch.no_grad():
        with model.hooks(fwd_hooks=[(f"blocks.{i}.attn.hook_attn_scores", masked_scores) for i in range(2)]):
            by_scores = model(*prompts.inputs)
        with edited(model, "pattern", hide([0, 5])):
            by_pattern, cache = model.run_with_cache(*prompts.inputs, names="pattern")
    torch.testing.assert_close(by_pattern, by_scores)
    torch.testing.assert_close(cache["pattern", 0].sum(-1), torch.ones_like(cache["pattern", 0][..., 0]))
    assert cache["pattern", 1][..., 6:, 5].abs().max() == 0


def test_a_change_is_the_edits_by_hand(checkpoint):
    prompts, model = checkpoint.held_out(8), checkpoint.model
    change = {"reset": (3,), "hide": (0,), "heads": ((0, 1), (1, 0)), "mlps": (1,), "in_loops": (2, 3)}
    data = explored(checkpoint, prompts, prompt=5, **change)
    where = {"loops": [1, 2]}
    with (
        torch.no_grad(),
        reset(model, [3], **where),
        edited(model, "pattern", hide([0]), **where),
        edited(model, "attn_z", zero, layers=0, heads=1, **where),
        edited(model, "attn_z", zero, layers=1, heads=0, **where),
        edited(model, "mlp_out", zero, layers=1, **where),
    ):
        outputs, cache = model.run_with_cache(*prompts.inputs, names=["pattern", "z"])
    changed, clean = data.sel(run="changed"), data.sel(run="clean")
    np.testing.assert_allclose(changed.prediction, outputs[:, 5], rtol=1e-5)
    np.testing.assert_allclose(changed.error, prompts.errors(outputs)[..., -1], rtol=1e-4)
    np.testing.assert_allclose(changed.pattern.sel(layer=1), cache.stack("pattern", 1)[:, 5], atol=1e-6)
    with torch.no_grad():
        before = model(*prompts.inputs)
    np.testing.assert_allclose(clean.prediction, before[:, 5], rtol=1e-5)
    np.testing.assert_allclose(changed.prediction[0], clean.prediction[0], rtol=1e-5)  # loop 0 is not changed
    assert not np.allclose(changed.prediction[1], clean.prediction[1])
    np.testing.assert_allclose(clean.to_final[-1], 0, atol=1e-12)
    apart = (outputs[:, 5] - before[-1, 5]).square() / prompts.scale
    np.testing.assert_allclose(changed.to_final, apart, rtol=1e-4)
    assert data.attrs["description"] == (
        "the state of token 3 reset, token 0 hidden from attention, heads 0.1, 1.0 off and MLP of layer 1 off, in loop "
        "2–3"
    )
    assert not model.hook_trees.busy


def test_a_path_is_the_projection_on_the_axes_of_the_clean_run(checkpoint):
    prompts = checkpoint.held_out(4)
    data = explored(checkpoint, prompts, prompt=2, reset=(1,))
    _, cache = checkpoint.model.run_with_cache(*prompts.inputs, names="z")
    states = cache.stack("z")[:, 2].double().reshape(-1, 16).numpy()
    centred = states - states.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    by_hand = centred @ vectors[:, ::-1][:, :3]
    path = data.path.sel(run="clean").values.reshape(-1, 3)
    np.testing.assert_allclose(np.abs(path), np.abs(by_hand), atol=1e-4)
    np.testing.assert_allclose(data.explained, values[::-1][:3] / values.sum(), rtol=1e-4)
    with torch.no_grad(), reset(checkpoint.model, [1]):
        _, cache = checkpoint.model.run_with_cache(*prompts.inputs, names="z")
    changed = cache.stack("z")[:, 2].double().reshape(-1, 16).numpy() - states.mean(0)
    path = data.path.sel(run="changed").values.reshape(-1, 3)
    np.testing.assert_allclose(np.abs(path), np.abs(changed @ vectors[:, ::-1][:, :3]), atol=1e-4)


def test_answers_of_tokens_come_in_words(token_checkpoint):
    prompts = token_checkpoint.held_out(6)
    data = explored(token_checkpoint, prompts, prompt=3)
    assert data.run.values.tolist() == ["clean"]
    with torch.no_grad():
        likely = token_checkpoint.model(*prompts.inputs, read_at=prompts.read_at)[:, 3].softmax(-1)
    names = np.array(prompts.answer_names)
    np.testing.assert_array_equal(data.top_answer.isel(run=0, top=0), names[likely.argmax(-1)])
    np.testing.assert_allclose(data.top_probability.isel(run=0).sum("top"), 1, rtol=1e-5)  # there are two answers
    own = likely.gather(-1, prompts.answers[3].expand(len(likely), -1)[..., None])[..., 0]
    np.testing.assert_allclose(np.exp(-data.answer_error.isel(run=0)), own, rtol=1e-4)
    assert data.token.values.tolist() == [prompts.names[token] for token in prompts.tokens[3]]
    assert data.right.values.tolist() == names[prompts.answers[3]].tolist()
    assert data.read_at.values.tolist() == list(range(prompts.n_tokens)[prompts.read_at])


def test_labels_and_inputs_are_named(checkpoint):
    prompts = checkpoint.held_out(2)
    data = explored(checkpoint, prompts, prompt=1)
    first = prompts.ys[1, 0].item()
    assert data.token.values[:3].tolist() == ["x1", f"y1 = {first:.2f}", "x2"]
    assert data.right.values[0] == f"{first:.2f}"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt": 8}, r"prompt \(8\) must be below 8"),
        ({"reset": (12,)}, "position 12 must be below 12"),
        ({"heads": ((0, 2),)}, "head 2 must be below 2"),
        ({"heads": ((2, 0),)}, "layer 2 must be below 2"),
        ({"mlps": (5,)}, "layer 5 must be below 2"),
        ({"hide": (1,), "in_loops": (5,)}, "loop 5 must be from 1 and at most 4"),
        ({"in_loops": (0,)}, "in_loops"),
        ({"in_loops": ()}, "in_loops is empty"),
        ({"heads": ((0,),)}, "heads"),
        ({"reset": (-1,)}, "reset"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line(checkpoint, options, match):
    with pytest.raises(LoopprobeError, match=match) as error:
        explored(checkpoint, **options)
    assert "\n" not in str(error.value)


def test_a_model_without_attention_patterns_is_not_asked_for_them(checkpoint, monkeypatch):
    trees = checkpoint.model.hook_trees
    left = tuple(name for name in trees.local_names if "pattern" not in name)
    monkeypatch.setattr(trees, "local_names", left)
    assert changeable(checkpoint.model) == {
        "reset": True,
        "hide": False,
        "heads": True,
        "attention": True,
        "mlps": True,
    }
    assert "pattern" not in explored(checkpoint)
    with pytest.raises(LoopprobeError, match="tiny shows no pattern, on which hide acts"):
        explored(checkpoint, hide=(1,))


def test_the_table_the_figure_and_the_sentence_tell_both_runs(checkpoint):
    data = explored(checkpoint, reset=(0, 1))
    end = data["median"].isel(loop=-1)
    clean, changed = (float(end.sel(run=name)) for name in ("clean", "changed"))
    assert sentences.explore(data) == (
        f"tiny: with the state of tokens 0, 1 reset, in every loop, the median error at the query after 4 loops is "
        f"{changed:.3g}, {changed / clean:.3g} times the {clean:.3g} of the clean run."
    )
    assert table(data).row_count == 2
    [figure] = figures([data]).values()
    drawn = [trace for trace in figure.data if trace.name == "changed, median" and trace.fill is None]
    np.testing.assert_allclose(drawn[0].y, data["median"].sel(run="changed"))
    assert sentences.explore(explored(checkpoint)).startswith("tiny: after 4 loops the median error at the query is")


def test_nothing_changed_is_said_so():
    assert describe(ExploreConfig()) == "nothing changed"
    assert PROBE.needs == frozenset()


def test_an_event_stops_work_between_two_loops():
    import threading

    stop = threading.Event()
    with stoppable(stop):
        go_on()
        stop.set()
        with pytest.raises(Stopped):
            go_on()
    go_on()
