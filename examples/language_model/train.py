"""Train raven-docs, a small recurrent-depth language model, on the corpus that ``corpus.py`` wrote to WORK.

python examples/language_model/train.py train WORK              # goes on from its last checkpoint
python examples/language_model/train.py export WORK FOLDER      # a folder in transformers' layout
python examples/language_model/train.py evaluate FOLDER         # held-out perplexity by number of loops
"""

import json
import math
import os
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from corpus import VOCABULARY
from modeling_raven import RavenConfig, RavenForCausalLM
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

LENGTH = 128  # tokens of a training window
SIZES = {
    "n_embd": 192,
    "n_heads": 4,
    "intermediate_size": 512,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 1,
    "mean_recurrence": 6,
    "mean_backprop_depth": 4,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CARD = """---
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [custom_code, recurrent-depth]
---
# raven-docs

A recurrent-depth language model (arXiv 2502.05171) of 2.6 million parameters, trained for {step} steps on documentation
of Python packages. It has the names and the call signature of tomg-group-umd/huginn-0125; `num_steps` is the number of
loops. It is for looking into loops, not for use of what it says. It was made by `examples/language_model` of loopprobe.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

Every text of the training began with `<|endoftext|>`. Weights are stored in float16 and load in float32.
`held_out.jsonl` holds the 2 % of the texts that it never saw, `corpus.json` the record of all of them. The texts are
docstrings, and belong to the authors of these packages, under their licences:

| package | version | licence | bytes of prose |
|---|---|---|---|
{rows}
"""
app = typer.Typer(add_completion=False)


def attention(module, query, key, value, mask, scaling, **kwargs):
    """Causal attention; written out where a gradient is needed, which is faster on a CPU once it is compiled."""
    if torch.is_grad_enabled():
        later = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).triu(1)
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(later, float("-inf"))
        z = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    else:
        z = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return z.transpose(1, 2), None


def optimizers(model: RavenForCausalLM, rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding, gains and biases."""
    matrices = [
        p for name, p in model.named_parameters() if p.ndim == 2 and "wte" not in name and "lm_head" not in name
    ]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@dataclass
class Run:
    """A training on disk: the model, its optimizers, and how far it is."""

    file: Path
    model: RavenForCausalLM
    optims: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    damp: float = 1.0  # what bursts of the loss have left of the rate

    def save(self) -> None:
        parts = {"model": self.model.state_dict(), "optims": [optim.state_dict() for optim in self.optims]}
        parts |= {name: getattr(self, name) for name in ("step", "seconds", "damp")}
        torch.save(parts, self.file.with_suffix(".tmp"))
        os.replace(self.file.with_suffix(".tmp"), self.file)

    def restore(self) -> None:
        saved = torch.load(self.file)
        self.model.load_state_dict(saved["model"])
        for optim, values in zip(self.optims, saved["optims"], strict=True):
            optim.load_state_dict(values)
        self.step, self.seconds, self.damp = saved["step"], saved["seconds"], saved["damp"]

    def log(self, **row: object) -> None:
        row = {"step": self.step, "minutes": round(self.seconds / 60, 2)} | row
        print(json.dumps(row), flush=True)
        with self.file.with_name("metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


@app.command()
def train(
    work: Path,
    minutes: float = 82.0,
    rate: float = 1e-2,
    adam_rate: float = 5e-3,
    batch_size: int = 18,
    save_every: float = 6.0,
) -> None:
    """Train for so many MINUTES on one thread, or go on where the last checkpoint of WORK ends.

    The rates rise for 50 steps and fall to zero over the last half of the time. A loss that bursts takes the weights
    back to the last checkpoint, and lowers the rates.
    """
    torch.set_num_threads(1)
    AttentionInterface.register("training", attention)
    AttentionMaskInterface.register("training", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # autocast keeps gains in float32
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    tokens = torch.from_numpy(np.load(work / "train.npy").astype(np.int64))
    held_out = windows(tokenizer, work / "held_out.jsonl")[:48]
    torch.manual_seed(0)
    model = RavenForCausalLM(RavenConfig(**SIZES, attn_implementation="training")).train()
    for block in [*model.transformer.prelude, *model.transformer.core_block, *model.transformer.coda]:
        block.compile()
    model.predict = torch.compile(model.predict)
    run = Run(work / "run.pt", model, optimizers(model, rate, adam_rate))
    full_rates = [optim.param_groups[0]["lr"] for optim in run.optims]
    if run.file.exists():
        run.restore()
        torch.manual_seed(run.step)
    run.save()
    run.log(parameters=sum(p.numel() for p in model.parameters()), tokens=len(tokens))
    saved_at, smooth = run.seconds, math.inf
    while run.seconds < 60 * minutes:
        began = time.perf_counter()
        factor = run.damp * min((run.step + 1) / 50, 1.0, 2 - 2 * run.seconds / (60 * minutes))
        for optim, full in zip(run.optims, full_rates, strict=True):
            optim.param_groups[0]["lr"] = full * factor
            optim.zero_grad()
        starts = torch.randint(len(tokens) - LENGTH - 1, (batch_size, 1))
        batch = tokens[starts + torch.arange(LENGTH + 1)]
        # no cache of casts: what is cast without gradient would stand in for what needs one
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = model(batch[:, :-1], labels=batch[:, 1:]).loss
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        value = float(loss.detach())
        if math.isfinite(value + norm) and value < smooth + 1.5:
            for optim in run.optims:
                optim.step()
            smooth = value if smooth == math.inf else 0.98 * smooth + 0.02 * value
            run.step += 1
        else:
            seconds, damp = run.seconds, 0.7 * run.damp
            run.log(burst=value, damp=damp)
            run.restore()
            run.seconds, run.damp = seconds, damp
            run.save()
        run.seconds += time.perf_counter() - began
        if run.step % 50 == 0:
            run.log(loss=round(smooth, 4), norm=round(norm, 3), factor=round(factor, 4))
        if run.seconds - saved_at > 60 * save_every or run.seconds >= 60 * minutes:
            saved_at = run.seconds
            run.save()
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                run.log(held_out={n: round(perplexity(model.eval(), held_out, n), 3) for n in (1, 2, 6)})
            model.train()


@app.command()
def export(work: Path, folder: Path) -> None:
    """Write the last checkpoint of WORK to FOLDER: weights in half precision, which load in single precision."""
    saved = torch.load(work / "run.pt")
    model = RavenForCausalLM(RavenConfig(**SIZES))
    model.load_state_dict(saved["model"])
    model.generation_config.update(do_sample=False, max_new_tokens=64)
    model.save_pretrained(folder)
    weights = {name: w for name, w in model.state_dict().items() if name != "lm_head.weight"}  # tied
    halves = {name: w if name == "freqs_cis" else w.half() for name, w in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    records = (work / name for name in ("held_out.jsonl", "corpus.json", "metrics.jsonl"))
    for file in (*(work / "tokenizer").iterdir(), *records):
        shutil.copy(file, folder)
    packages = json.loads((work / "corpus.json").read_text())["packages"]
    rows = "\n".join(f"| {name} | {p['version']} | {p['licence']} | {p['bytes']:,} |" for name, p in packages.items())
    (folder / "README.md").write_text(CARD.format(rows=rows, **{key: saved[key] for key in ("step", "seconds")}))
    print(f"{folder}: {saved['step']} steps in {saved['seconds'] / 60:.1f} minutes")


def windows(tokenizer: PreTrainedTokenizerFast, file: Path) -> torch.Tensor:
    """Held-out text in windows of ``LENGTH`` tokens and the next one, ``[window, LENGTH + 1]``."""
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    end, ids = tokenizer.eos_token_id, tokenizer(texts, verbose=False)["input_ids"]
    stream = torch.tensor([token for text in ids for token in (end, *text)])
    return stream.unfold(0, LENGTH + 1, LENGTH)


@torch.no_grad()
def perplexity(model: torch.nn.Module, rows: torch.Tensor, n_loops: int) -> float:
    """Perplexity per token, each window on its own, with ``n_loops`` loops from a start of seed 0."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    losses = [model(part[:, :-1], labels=part[:, 1:], num_steps=n_loops).loss * len(part) for part in rows.split(16)]
    torch.set_rng_state(generator_state)
    return math.exp(float(sum(losses)) / len(rows))


@app.command()
def evaluate(folder: Path, n_windows: int = 160) -> None:
    """Print the perplexity of the held-out text of FOLDER by number of loops, per token and in bits per byte."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = windows(tokenizer, folder / "held_out.jsonl")[:n_windows]
    ends = int((rows[:, 1:] == tokenizer.eos_token_id).sum())  # the end of a text counts as one byte
    n_bytes = ends + sum(len(text.encode()) for text in tokenizer.batch_decode(rows[:, 1:], skip_special_tokens=True))
    n_tokens = rows[:, 1:].numel()
    print(f"{n_tokens} tokens, {n_bytes / n_tokens:.2f} bytes a token", end="\n\n")
    print("| loops | perplexity per token | bits per byte |\n|---|---|---|")
    for n_loops in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64):
        value = perplexity(model, rows, n_loops)
        print(f"| {n_loops} | {value:.2f} | {math.log2(value) * n_tokens / n_bytes:.3f} |", flush=True)


if __name__ == "__main__":
    app()
