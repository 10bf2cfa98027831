"""Make the corpus and the tokenizer of raven-docs from documentation that comes with Python packages.

python examples/language_model/corpus.py WORK
"""

import ast
import hashlib
import importlib.metadata
import json
import pydoc_data.topics
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# fmt: off
PACKAGES = [
    "numpy", "scipy", "scikit-learn", "pandas", "networkx", "sympy", "mpmath", "xarray", "torch", "transformers", "ray",
    "huggingface-hub", "datasets", "accelerate", "beartype", "transformer-lens", "wandb", "playwright", "pydantic",
    "narwhals", "pip",
]
# fmt: on
FOLDERS = {"scikit-learn": "sklearn", "huggingface-hub": "huggingface_hub", "transformer-lens": "transformer_lens"}
END = "<|endoftext|>"
VOCABULARY = 4096
ROLE = re.compile(r":[\w:]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
SENTENCES = re.compile(r"[A-Z`\"(*].*[.:!?)]")


def sources() -> Iterator[tuple[str, str]]:
    """Each docstring, and each topic of pydoc, with the package that it comes from."""
    yield from (("python", text) for _, text in sorted(pydoc_data.topics.topics.items()))
    stdlib, site = Path(sysconfig.get_paths()["stdlib"]), Path(sysconfig.get_paths()["purelib"])
    roots = [("python", stdlib), *((name, site / FOLDERS.get(name, name)) for name in PACKAGES)]
    warnings.simplefilter("ignore", SyntaxWarning)
    for package, root in roots:
        for file in sorted(root.rglob("*.py")):
            if package == "python" and {"site-packages", "dist-packages"} & set(file.parts):
                continue
            try:
                tree = ast.parse(file.read_text("utf-8"))
            except (SyntaxError, UnicodeDecodeError, ValueError):
                continue  # test data of packages, which shall not parse
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield package, ast.get_docstring(node) or ""


def prose(text: str) -> Iterator[str]:
    """The paragraphs of a docstring that are sentences: no code, tables, headings, signatures or lists of names."""
    lines, indent = [], 0
    for line in [*text.splitlines(), ""]:
        words, depth = line.strip(), len(line) - len(line.lstrip())
        if lines and (not words or depth != indent):
            paragraph = re.sub(r"\s+", " ", ROLE.sub(r"\1", " ".join(lines)).replace("``", "`"))
            tokens = paragraph.split()
            plain = sum(token.strip("`.,;:()\"'").isalpha() for token in tokens)
            letters = sum(c.isalpha() or c == " " for c in paragraph)
            if (
                len(tokens) >= 6
                and SENTENCES.fullmatch(paragraph)
                and plain >= 0.75 * len(tokens)
                and letters >= 0.85 * len(paragraph)
                and not any(mark in paragraph for mark in (">>>", "--", "==", "|"))
            ):
                yield paragraph
            lines = []
        if words:
            lines.append(words)
            indent = depth


def prepare(work: Path) -> None:
    """Write the corpus, its record, the tokenizer and the tokens to WORK."""
    work.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    documents, sizes = [], {}
    for package, text in sources():
        paragraphs = [p for p in prose(text) if not (p in seen or seen.add(p))]
        document = "\n".join(paragraphs)
        if len(document) >= 60:
            documents.append(document)
            sizes[package] = sizes.get(package, 0) + len(document.encode())
    documents.sort(key=lambda text: hashlib.sha256(text.encode()).hexdigest())  # an order that is no order
    n_held_out = len(documents) // 50
    parts = {"held_out": documents[:n_held_out], "train": documents[n_held_out:]}  # the lowest hashes: 2 %
    for name, texts in parts.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    packages = {"python": {"version": sysconfig.get_python_version(), "licence": "PSF-2.0"}}
    for name in PACKAGES:
        data = importlib.metadata.metadata(name)
        classifiers = [line.split(" :: ")[-1] for line in data.get_all("Classifier", []) if line.startswith("License")]
        licence = data["License-Expression"] or " ".join(classifiers) or data["License"]
        packages[name] = {"version": data["Version"], "licence": licence}
    for name, about in packages.items():
        about["bytes"] = sizes.get(name, 0)
    record = {
        "documents": {name: len(texts) for name, texts in parts.items()},
        "bytes": sum(sizes.values()),
        "sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
        "packages": packages,
    }
    (work / "corpus.json").write_text(json.dumps(record, indent=1) + "\n")

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(parts["train"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, model_max_length=1024
    )
    tokenizer.save_pretrained(work / "tokenizer")
    end = tokenizer.eos_token_id
    tokens = [token for ids in bpe.encode_batch(parts["train"]) for token in (end, *ids.ids)]
    np.save(work / "train.npy", np.array(tokens, dtype=np.uint16))
    print(json.dumps(record["documents"]), record["bytes"], "bytes", len(tokens), "tokens", record["sha256"])


if __name__ == "__main__":
    typer.run(prepare)
