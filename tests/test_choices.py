"""Any choice of loops, layers, heads and positions is what numpy's indexing chooses, or refused in one line."""

import numpy as np
import pytest
import torch
from conftest import TINY, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from loopprobe.config.selection import resolve
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, zero
from loopprobe.model.selection import LoopChoice
from loopprobe.tasks import Prompts

N_LOOPS, N_POS = 5, 2 * TINY["n_points"]
quick = settings(derandomize=True, deadline=None, max_examples=40)


def choices(size):
    """What people type for an axis of this size, some of it beyond its ends."""
    number = st.integers(-size - 2, size + 2)
    return st.one_of(
        st.none(),
        number,
        st.lists(number, max_size=4),
        st.builds(slice, st.none() | number, st.none() | number, st.sampled_from([None, 1, 2, -1])),
        st.builds(range, st.integers(0, size), st.integers(0, size + 1)),
    )


def expected(choice, size):
    """The chosen numbers in numpy's words, each once; None where it is refused."""
    if choice is None:
        return list(range(size))
    try:
        picked = np.arange(size)[choice if isinstance(choice, slice) else list(np.atleast_1d(choice))]
    except IndexError:
        return None
    return list(dict.fromkeys(picked.tolist())) or None


MODEL = make_model()
GENERATOR = torch.Generator().manual_seed(3)
PROMPTS = Prompts(
    torch.randn(3, TINY["n_points"], TINY["n_dims"], generator=GENERATOR, dtype=torch.float64),
    torch.randn(3, TINY["n_points"], generator=GENERATOR, dtype=torch.float64),
)
EVERYTHING = MODEL.run_with_cache(*PROMPTS, N_LOOPS)[1]


@pytest.mark.parametrize("size", [1, 5])
def test_numbers(size):
    @quick
    @given(choices(size))
    def check(choice):
        wanted = expected(choice, size)
        if wanted is None:
            with pytest.raises(LoopprobeError) as error:
                resolve(choice, size, "loop")
            assert "\n" not in str(error.value)
        else:
            assert (resolve(choice, size, "loop") or list(range(size))) == wanted

    check()


@quick
@given(
    choices(N_LOOPS), choices(TINY["n_layers"]), choices(N_POS), st.sampled_from(["resid_post", "pattern", "q", "z"])
)
def test_caches(loops, layers, positions, name):
    wanted = expected(loops, N_LOOPS), expected(layers, TINY["n_layers"]), expected(positions, N_POS)
    choice = {"loops": loops, "layers": layers, "positions": positions}
    if None in wanted:
        with pytest.raises(LoopprobeError):
            MODEL.run_with_cache(*PROMPTS, N_LOOPS, names=name, **choice)
        return
    _, cache = MODEL.run_with_cache(*PROMPTS, N_LOOPS, names=name, **choice)
    assert cache.loops == sorted(wanted[0])
    axis = 2 if name == "pattern" else 1
    for layer in [None] if name == "z" else wanted[1]:
        for loop in wanted[0]:
            values = EVERYTHING[loop, name, layer].index_select(axis, torch.tensor(wanted[2]))
            torch.testing.assert_close(cache[loop, name, layer], values, atol=1e-10, rtol=0)


@quick
@given(choices(N_LOOPS), choices(TINY["n_layers"]), choices(TINY["n_heads"]), choices(N_POS))
def test_edits(loops, layers, heads, positions):
    sizes = N_LOOPS, TINY["n_layers"], TINY["n_heads"], N_POS
    wanted = [expected(*pair) for pair in zip((loops, layers, heads, positions), sizes, strict=True)]
    choice = {"loops": loops, "layers": layers, "heads": heads, "positions": positions}

    def run():
        with edited(MODEL, "attn_z", zero, **choice):
            return MODEL.run_with_cache(*PROMPTS, N_LOOPS, names="attn_z")[1]

    if None in wanted:
        with pytest.raises(LoopprobeError):
            run()
    else:
        cache = run()
        for loop in range(N_LOOPS):
            for layer in range(TINY["n_layers"]):
                inside = torch.zeros(N_POS, TINY["n_heads"], dtype=torch.bool)
                if loop in wanted[0] and layer in wanted[1]:
                    inside[np.ix_(wanted[3], wanted[2])] = True
                assert (cache[loop, "attn_z", layer][:, inside] == 0).all()
                assert (cache[loop, "attn_z", layer][:, ~inside] != 0).all()
    assert MODEL.list_hooks() == {}


@quick
@given(choices(N_LOOPS), st.integers(1, 7))
def test_loops_of_a_run_that_has_not_started(choice, n_loops):
    def has():
        loops = LoopChoice(choice)
        chosen = [loop for loop in range(n_loops) if loops.has(loop, n_loops)]
        loops.require_reached(n_loops)
        return chosen

    if (wanted := expected(choice, n_loops)) is None:
        with pytest.raises(LoopprobeError):
            has()
    else:
        assert has() == sorted(wanted)


def test_a_range_that_no_memory_holds_is_refused_before_it_is_written_out():
    with pytest.raises(LoopprobeError, match="are 1,000,000,000,000, the most are 10,000,000"):
        LoopChoice("0:999999999999")
    assert LoopChoice("0:4").known == [0, 1, 2, 3, 4]
