"""Tokenizers of three kinds, trained here on docstrings of the standard library: no network."""

import argparse
import functools
import logging
import random
import subprocess

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CAPITALS = {"France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome"}
SENTENCES = [f"The capital of {country} is {city}." for country, city in CAPITALS.items()]
CHAT = (
    "{% for m in messages %}{% if m.content == 'refused' %}{{ raise_exception('no\nway') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def lines():
    """A few thousand lines of English."""
    sentences = 50 * [sentence[:-1] for sentence in SENTENCES] + 20 * SENTENCES
    docs = [getattr(each, "__doc__", "") for m in (argparse, logging, random, subprocess) for each in vars(m).values()]
    return [line for doc in docs if isinstance(doc, str) for line in doc.splitlines() if line.strip()] + sentences


def _wrapped(tokenizer, trainer, marks, **special):
    from transformers import PreTrainedTokenizerFast

    tokenizer.train_from_iterator(lines(), trainer)
    ids = [(mark, tokenizer.token_to_id(mark)) for mark in marks.split() if mark.startswith(("<", "["))]
    tokenizer.post_processor = processors.TemplateProcessing(single=marks, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)


@functools.cache
def byte_level():
    """As GPT-2's, but that it begins texts with <s> and ends them with </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made = _wrapped(tokenizer, trainer, "<s> $A </s>", bos_token="<s>", eos_token="</s>")
    made.chat_template = CHAT
    return made


@functools.cache
def bare():
    """The same, which adds nothing to a text and has no chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    tokenizer.post_processor = processors.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@functools.cache
def metaspace():
    """As Llama's: spaces are ▁, and bytes without a token are <0xE2> and so on."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False)
    return _wrapped(tokenizer, trainer, "<s> $A", unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@functools.cache
def word_piece():
    """As BERT's: [CLS] text [SEP], and a mask."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    named = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return _wrapped(tokenizer, trainer, "[CLS] $A [SEP]", **named)
