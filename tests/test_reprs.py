"""What a session prints: models, caches and prompts in a line or two, never their numbers."""

import torch

from loopprobe import Prompts, load_checkpoint


def test_prompts_are_a_line():
    prompts = load_checkpoint("lr-b5-T5").held_out(4, seed=3)
    assert repr(prompts) == (
        "Prompts(4 prompts of linear regression, 31 points of 10 dimensions, held out with seed 3)"
    )
    assert repr(Prompts(torch.zeros(2, 5, 3), torch.zeros(2, 5))) == (
        "Prompts(2 prompts of no task that is known, 5 points of 3 dimensions)"
    )
    words = load_checkpoint("add-L1").held_out(7, length=3)
    assert repr(words) == "TokenPrompts(7 prompts of addition, 5 tokens, held out with seed 0)"


def test_a_cache_tells_its_loops_names_and_size():
    model = load_checkpoint("lr-b5-T5").model
    _, cache = model.run_with_cache(torch.zeros(2, 31, 10), torch.zeros(2, 31), names=["z", "pattern"])
    assert repr(cache).startswith("LoopCache(loops 0–4 of 5, 2 names, ")
