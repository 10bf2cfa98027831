import pytest
import torch
from conftest import make_model

from loopprobe.errors import LoopprobeError
from loopprobe.model.masks import kept_tokens, masked, mean_states


def by_hand(model, prompts, keep, fill, n_loops, loops=None):
    """The study's masking, written as a loop."""
    e = model.embed(prompts.xs, prompts.ys)
    z, out = model.initial_state(e), []
    for loop in range(n_loops):
        if loops is None or loop in loops:
            z = torch.where(keep[:, None], z, fill(e, loop))
        z = model.step(z, e, loop)
        out.append(model.predict(z, loop=loop))
    return torch.stack(out)


@pytest.mark.parametrize("injection", ["add", "multiply", "none"])
@pytest.mark.parametrize("mode", ["first", "last"])
@pytest.mark.parametrize("n", [0, 2, 5, 6])
def test_masking_is_the_replacement_of_the_state_before_every_loop(injection, mode, n, prompts):
    model = make_model(injection=injection)
    keep = torch.zeros(12, dtype=torch.bool)
    keep[: 2 * n] = True
    if mode == "last":
        keep = keep.flip(0)
    with masked(model, mode, n):
        predictions = model(prompts.xs, prompts.ys, 5)
    expected = by_hand(model, prompts, keep, lambda e, loop: model.initial_state(e), 5)
    assert torch.equal(predictions, expected)
    assert model.list_hooks() == {}


def test_hooks_of_torch_on_any_module_fire_once_a_loop(prompts):
    model = make_model(n_prelude_layers=1, n_coda_layers=1)
    calls = []
    for name, module in model.named_modules():
        if name and not isinstance(module, torch.nn.ModuleList):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        model(*prompts, 3)
    once = {name for name in set(calls) if name.startswith("prelude") or name == "read_in"}
    assert {"blocks.0", "blocks.1.mlp", "prelude.0", "coda.0", "ln_final"} <= set(calls)
    assert {name: calls.count(name) for name in set(calls)} == {n: 1 if n in once else 3 for n in set(calls)}


def test_keeping_all_points_masks_nothing_bit_for_bit(model, prompts):
    plain = model(prompts.xs, prompts.ys, 6)
    for mode in ("first", "last"):
        with masked(model, mode, 6):
            assert torch.equal(model(prompts.xs, prompts.ys, 6), plain)


def test_keeping_nothing_repeats_the_first_loop(model, prompts):
    with masked(model, "first", 0):
        predictions = model(prompts.xs, prompts.ys, 4)
    assert torch.equal(predictions, predictions[:1].expand(4, -1, -1))


def test_inverting_first_is_keeping_last(model, prompts):
    with masked(model, "first", 2, invert=True):
        inverted = model(prompts.xs, prompts.ys)
    with masked(model, "last", 4):
        assert torch.equal(model(prompts.xs, prompts.ys), inverted)


def test_tokens_are_half_points(model, prompts):
    with masked(model, "last", 3):
        points = model(prompts.xs, prompts.ys)
    with masked(model, "last", 6, unit="token"):
        assert torch.equal(model(prompts.xs, prompts.ys), points)
    assert kept_tokens("first", 3, 6, unit="token").tolist() == [[True] * 3 + [False] * 3]


def test_masking_once_acts_at_that_loop(model, prompts):
    plain = model(prompts.xs, prompts.ys, 6)
    with masked(model, "first", 2, loops=[3]):
        once = model(prompts.xs, prompts.ys, 6)
    assert torch.equal(once[:3], plain[:3])
    assert not torch.isclose(once[3, :, -1], plain[3, :, -1]).any()
    keep = torch.arange(12) < 4
    expected = by_hand(model, prompts, keep, lambda e, loop: torch.zeros_like(e), 6, loops=[3])
    assert torch.equal(once, expected)


def test_many_masks_in_one_batch_are_each_alone(model, prompts):
    with masked(model, "last", [0, 2, 6]):
        together = model(prompts.xs.repeat(3, 1, 1), prompts.ys.repeat(3, 1)).unflatten(1, (3, 8))
    for i, n in enumerate((0, 2, 6)):
        with masked(model, "last", n):
            torch.testing.assert_close(together[:, i], model(prompts.xs, prompts.ys), atol=1e-12, rtol=0)


def test_fills(prompts):
    model = make_model(injection="multiply")  # its initial state is one, so zero differs from initial
    keep = torch.arange(12) < 4
    with masked(model, "first", 2, fill="zero"):
        zero = model(prompts.xs, prompts.ys)
    assert torch.equal(zero, by_hand(model, prompts, keep, lambda e, loop: torch.zeros_like(e), 4))
    means = mean_states(model, prompts.split(3), 4)
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, 4, names="z_pre")
    torch.testing.assert_close(means, cache.stack("z_pre").mean(1), atol=1e-12, rtol=0)
    with masked(model, "first", 2, fill=means):
        mean = model(prompts.xs, prompts.ys)
    torch.testing.assert_close(mean, by_hand(model, prompts, keep, lambda e, loop: means[loop], 4), atol=1e-12, rtol=0)


def test_a_mask_counts_from_the_end_of_the_prompt_that_runs(model, prompts):
    short = type(prompts)(prompts.xs[:, :4], prompts.ys[:, :4])
    with masked(model, "last", 1):
        predictions = model(short.xs, short.ys)
    keep = torch.arange(8) >= 6
    assert torch.equal(predictions, by_hand(model, short, keep, lambda e, loop: torch.zeros_like(e), 4))


def test_nothing_stays_attached_after_an_error(model, prompts):
    with pytest.raises(RuntimeError, match="inside"), masked(model, "first", 2):
        raise RuntimeError("inside")
    with pytest.raises(LoopprobeError), masked(model, "first", 99):
        pass
    with pytest.raises(LoopprobeError, match="blocks"), masked(model, "first", [1, 2, 3]):
        model(prompts.xs, prompts.ys)
    assert model.list_hooks() == {}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n": 7}, r"n \(7\).*6 points.*0:6"),
        ({"n": -1}, r"n \(-1\)"),
        ({"n": 13, "unit": "token"}, r"n \(13\).*12 tokens"),
        ({"mode": "middle"}, "mode"),
        ({"unit": "word"}, "unit"),
        ({"fill": "mean"}, "mean_states"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_masks_get_one_line(arguments, match, model):
    with pytest.raises(LoopprobeError, match=match), masked(model, **({"n": 2} | arguments)):
        pass
