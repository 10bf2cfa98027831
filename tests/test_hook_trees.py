"""Hook points that exist where they are hooked, and only for the thread that hooks them."""

import copy
import pickle
import threading

import pytest
import torch
from conftest import make_model

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import split_name
from loopprobe.model.interventions import add, edited, skipped, zero
from loopprobe.model.masks import masked


def _double(x, hook):
    return 2 * x


DIRECTION = torch.arange(16.0)  # not along the ones, which a layer norm takes out again


def test_a_model_that_nobody_hooks_has_no_hook_points(model, prompts):
    model(*prompts, 40)
    assert model.hook_points() == []
    assert make_model(n_loops=10**9).cfg.n_loops == 10**9  # made at once, however many loops


def test_hook_points_of_a_long_run_do_not_stay(model, prompts):
    with edited(model, "resid_post", add(DIRECTION)):
        model(*prompts, 50)
        assert len({point.loop() for point in model.hook_points()}) == model.cfg.n_loops
    assert model.hook_points() == []


def test_what_a_hook_keeps_in_its_point_stays(model, prompts):
    def note(x, hook):
        hook.ctx["mean"] = x.mean().item()

    with model.hooks(fwd_hooks=[("loops.1.hook_z", note)]):
        model(*prompts)
    _, cache = model.run_with_cache(*prompts, names="z")
    assert model.hook_dict["loops.1.hook_z"].ctx["mean"] == pytest.approx(cache[1, "z"].mean().item())


@pytest.mark.slow
def test_nothing_that_a_call_would_have_to_walk_through_stays_after_a_long_run():
    """What calls cost in seconds is in benchmarks/session.py."""
    model = make_model(torch.float32, n_layers=1)
    xs, ys = torch.zeros(1, 6, 3), torch.zeros(1, 6)
    model.run_with_cache(xs, ys, 2000, names="resid_post")
    with masked(model, "first", 2):
        model(xs, ys, 2000, keep_loops=1)
        assert len(model.hook_points()) == model.cfg.n_loops + 1
    assert model.hook_points() == []
    assert model.hook_trees.busy == 0


def test_hook_dict_lists_the_loops_of_the_training_and_finds_any(model):
    names = list(model.hook_dict)
    assert len(names) == len(model.hook_dict) == 1 + 4 * (5 + 2 + 2 * 18)
    assert names[0] == "hook_embed"
    assert {split_name(name)[0] for name in names} == {None, 0, 1, 2, 3}
    assert "loops.99.hook_z" in model.hook_dict
    assert model.hook_dict["loops.99.hook_z"].loop() == 99
    for wrong in ("loops.0.hook_embed", "hook_z", "loops.0.blocks.2.hook_resid_post", "nonsense"):
        assert wrong not in model.hook_dict
        with pytest.raises(KeyError):
            model.hook_dict[wrong]
    assert len(model.loops) == 4
    assert model.loops[2].blocks[1].attn.hook_q is model.hook_dict["loops.2.blocks.1.attn.hook_q"]
    assert model.loops[-1].hook_z.loop() == 3


def test_a_hook_added_to_a_point_itself_acts_until_it_is_reset(model, prompts):
    plain = model(*prompts)
    point = model.hook_dict["loops.1.blocks.0.hook_mlp_out"]
    point.add_hook(_double)
    hooked = model(*prompts)
    assert torch.equal(hooked[0], plain[0])
    assert not torch.isclose(hooked[1:], plain[1:]).any()
    assert list(model.list_hooks()) == ["loops.1.blocks.0.hook_mlp_out"]
    assert torch.equal(copy.deepcopy(model)(*prompts), hooked)
    model.reset_hooks()
    assert torch.equal(model(*prompts), plain)
    assert model.list_hooks() == {}


def test_hooks_act_in_the_order_in_which_they_were_attached(model, prompts):
    order = []
    note = lambda what: lambda x, hook: order.append(what)  # noqa: E731
    name = "loops.0.hook_z"
    with model.hooks(fwd_hooks=[(name, note("first")), (lambda known: known == name, note("second"))]):
        model.add_hook(name, note("third"))
        model.add_hook(name, note("zeroth"), prepend=True)
        model(*prompts, 1)
    assert order == ["zeroth", "first", "second", "third"]


def test_two_threads_do_not_see_each_others_hooks(prompts):
    model = make_model()
    plain = {shift: _shifted(model, prompts, shift) for shift in range(6)}
    everyone = threading.Barrier(6)
    wrong = []

    def work(shift):
        everyone.wait()
        for _ in range(8):
            if not torch.equal(_shifted(model, prompts, shift), plain[shift]):
                wrong.append(shift)
            _, cache = model.run_with_cache(*prompts, 3, names="resid_post")
            if cache.loops != [0, 1, 2] or cache.stack("resid_post", 1).shape[0] != 3:
                wrong.append(shift)

    threads = [threading.Thread(target=work, args=(shift,)) for shift in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert model.list_hooks() == {}


def _shifted(model, prompts, shift):
    with torch.no_grad(), edited(model, "resid_mid", add(DIRECTION, shift)):
        return model(*prompts, 3)


def test_a_hook_added_to_the_model_acts_in_every_thread(model, prompts):
    model.add_hook("hook_z", _double)
    hooked, elsewhere = model(*prompts), []
    thread = threading.Thread(target=lambda: elsewhere.append(model(*prompts)))
    thread.start()
    thread.join()
    assert torch.equal(elsewhere[0], hooked)


def test_copies_and_pickles(model, prompts):
    plain = model(*prompts)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(*prompts), plain)
        assert same.list_hooks() == {}
    with masked(model, "first", 2):
        copied = copy.deepcopy(model)
        assert torch.equal(copied(*prompts), model(*prompts))
        with pytest.raises(LoopprobeError, match="hooks attached cannot be saved"):
            pickle.dumps(model)
    assert not torch.equal(copied(*prompts), plain)  # a copy keeps the hooks that it was made with
    copied.reset_hooks()
    assert torch.equal(copied(*prompts), plain)


@pytest.mark.parametrize(
    "name",
    ["loops.30.hook_z", lambda name: False, lambda name: name.startswith("blocks"), lambda name: "loops.9." in name],
)
def test_a_hook_that_no_run_reaches_is_an_error(name, model, prompts):
    with pytest.raises(LoopprobeError, match="never reached"), model.hooks(fwd_hooks=[(name, _double)]):
        model(*prompts)
    with pytest.raises(LoopprobeError, match="never reached"):
        model.run_with_hooks(*prompts, fwd_hooks=[(name, _double)])
    assert model.list_hooks() == {}
    with model.hooks(fwd_hooks=[(name, _double)]):
        pass  # without a run nothing can be said


def test_an_error_inside_is_not_hidden_by_a_hook_that_was_not_reached(model, prompts):
    with pytest.raises(ZeroDivisionError), model.hooks(fwd_hooks=[("loops.30.hook_z", _double)]):
        model(*prompts)[0, 0, 1 // 0]


@pytest.mark.parametrize("block", [edited, skipped, masked])
def test_loops_of_edits_are_counted_from_either_end_and_must_be_there(block, model, prompts):
    def entered(loops):
        if block is edited:
            return edited(model, "resid_post", add(DIRECTION), loops=loops)
        return skipped(model, loops) if block is skipped else masked(model, "first", 2, loops=loops)

    def predictions(loops, n_loops):
        with entered(loops):
            return model(*prompts, n_loops)

    for same in (5, [5], -1, [-1], slice(5, None), slice(-1, None), range(5, 6), (t for t in (5,)), {5}):
        assert torch.equal(predictions(same, 6), predictions([5], 6)), same
    for same in (slice(2), range(2), [1, 0], (t for t in (0, 1)), [-6, -5]):
        assert torch.equal(predictions(same, 6), predictions([0, 1], 6)), same
    for wrong in (6, [0, 6], range(4, 8)):
        with pytest.raises(LoopprobeError, match="never reached"):
            predictions(wrong, 6)
    with pytest.raises(LoopprobeError, match="loop -7 must be below 6"):
        predictions(-7, 6)
    for wrong in ([], "ab", 1.5, [True], [None]):
        with pytest.raises(LoopprobeError):
            predictions(wrong, 6)
    e = model.embed(*prompts)
    with pytest.raises(LoopprobeError, match=r"model\.step is none"), entered(-1):
        model.step(model.initial_state(e), e, 3)
    assert model.list_hooks() == {}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("injection", ["add", "none"])
def test_writing_in_place_at_any_point_changes_that_run_and_no_weights(injection, requires_grad, prompts):
    model = make_model(injection=injection)
    one = type(prompts)(prompts.xs[:1], prompts.ys[:1])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(*one).detach()

    def write(x, hook):
        x[:] = 0.1

    def replace(x, hook):
        return torch.full_like(x, 0.1)

    for name in ["hook_embed", *model.hook_trees.local_names]:
        with torch.set_grad_enabled(requires_grad):
            results = []
            for edit in (write, replace):
                model.zero_grad()
                with model.hooks(fwd_hooks=[(name, edit)]):
                    predictions = model(*one)
                if predictions.requires_grad:
                    predictions.square().sum().backward()
                grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
                results.append((predictions.detach(), grads))
            torch.testing.assert_close(results[0][0], results[1][0], atol=1e-12, rtol=0, msg=name)
            for ours, theirs in zip(results[0][1], results[1][1], strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0, msg=name)
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key]), (name, key)
    assert torch.equal(model(*one).detach(), plain)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x: x[:, :-1], "returned shape"),
        (lambda x: x.float(), "returned dtype torch.float32"),
        (lambda x: x.numpy(), "returned a ndarray"),
        (lambda x: (x,), "returned a tuple"),
        (lambda x: 0, "returned a int"),
    ],
)
def test_what_a_hook_returns_must_stand_in_for_the_activation(value, message, model, prompts):
    name = "loops.1.blocks.0.hook_resid_mid"
    with (
        torch.no_grad(),
        pytest.raises(LoopprobeError, match=rf"{name} {message}"),
        model.hooks(fwd_hooks=[(name, lambda x, hook: value(x))]),
    ):
        model(*prompts)


@pytest.mark.parametrize("name", ["run_loops", "step", "embed", "predict"])
def test_a_model_with_one_compiled_method_sees_hooks_that_are_attached_later(name, prompts):
    torch._dynamo.reset()
    model = make_model(torch.float32, n_layers=2)
    xs, ys = prompts.xs.float(), prompts.ys.float()
    point = {"embed": "hook_embed", "predict": "hook_readout"}.get(name, "blocks.1.attn.hook_pattern")
    hooks = {"fwd_hooks": [(point, lambda x, hook: 0.5 * x)]}
    with torch.no_grad():
        plain, changed = model(xs, ys, 2), model.run_with_hooks(xs, ys, 2, **hooks)
        setattr(model, name, torch.compile(getattr(model, name), backend="eager"))
        for _ in range(2):  # with hooks after a run without, and without after one with hooks
            torch.testing.assert_close(model(xs, ys, 2), plain, atol=1e-5, rtol=0)
            torch.testing.assert_close(model.run_with_hooks(xs, ys, 2, **hooks), changed, atol=1e-5, rtol=0)
    assert not torch.allclose(changed, plain, atol=1e-3)


def test_a_compiled_model_sees_hooks_that_are_attached_later(prompts):
    torch._dynamo.reset()
    model = make_model(torch.float32, n_layers=1)
    xs, ys = prompts.xs.float(), prompts.ys.float()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = model(xs, ys, 2)
        torch.testing.assert_close(compiled(xs, ys, 2), plain, atol=1e-5, rtol=0)
        for block in (masked(model, "first", 2), edited(model, "mlp_out", zero), edited(model, "pattern", zero)):
            with block:
                torch.testing.assert_close(compiled(xs, ys, 2), model(xs, ys, 2), atol=1e-5, rtol=0)
                assert not torch.allclose(compiled(xs, ys, 2), plain, atol=1e-3)
        torch.testing.assert_close(compiled(xs, ys, 2), plain, atol=1e-5, rtol=0)
