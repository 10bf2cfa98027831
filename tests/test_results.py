"""What a solver of a token task would hold, read from the state: which results are asked for."""

import torch

from loopprobe import probe
from loopprobe.config.sources import load_config
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.checkpoint import Checkpoint


def untrained(*overrides):
    cfg = load_config(overrides=["model.d_model=8", "model.n_heads=2", "train.device=cpu", *overrides])
    return Checkpoint(cfg, LoopedTransformer(cfg.model, torch.Generator().manual_seed(0)).eval(), name="runs/tiny")


def test_the_last_batch_is_asked_for_the_same_results_as_all():
    """In a batch where every chain has its end, answers and the last hop are one; in others they are not."""
    checkpoint = untrained("task.name=p_hop", "task.length=2", "task.context=8", "model.n_ctx=16")
    prompts = checkpoint.held_out(400)
    ends = (prompts.answers < len(prompts.answer_names) - 1).all(1)
    order = torch.cat([(~ends).nonzero()[:64], ends.nonzero()[:1]]).flatten()
    assert len(order) == 65
    data = probe("decode", checkpoint, prompts[order], loops=2, train_prompts=32)
    assert data.target.values.tolist() == ["after hop 1", "after hop 2", "answer"]
    assert data.right.shape[-1] == 65


def test_answers_that_are_a_result_are_read_once():
    data = probe(
        "decode",
        untrained("task.name=s5", "task.length=4", "model.n_ctx=8", "train.loop_window=4"),
        20,
        train_prompts=20,
    )
    assert data.target.values.tolist() == ["product so far"]
