"""The benchmark compares like with like: its plain model computes what ours does."""

import sys
from pathlib import Path

import torch

from loopprobe.model import LoopedTransformer
from loopprobe.settings import load_config
from loopprobe.tasks import held_out

RENAMED = [
    ("ln_1", "ln1"), ("ln_2", "ln2"), ("c_attn", "attn.qkv"), ("c_proj", "attn.out"), ("c_fc", "mlp.fc_in"),
    ("c_out", "mlp.fc_out"), ("ln_f", "ln_final"), ("wpe.weight", "W_pos"),
]  # fmt: skip


def test_the_plain_model_of_the_benchmark_is_the_same_model(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[1] / "benchmarks"), *sys.path])
    from train_step import PlainLooped

    plain, cfg = PlainLooped(10, 31, 64, 4, 1), load_config()
    weights = {}
    for name, tensor in plain.state_dict().items():
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        weights[name] = tensor
    model = LoopedTransformer(cfg.model)
    model.load_state_dict(weights)
    prompts = held_out(cfg.task, 4, 31, 10)
    expected = torch.stack(plain(prompts.xs, prompts.ys, 20, 10))
    torch.testing.assert_close(model(prompts.xs, prompts.ys, keep_loops=10), expected, atol=1e-5, rtol=0)
