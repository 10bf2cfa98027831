"""Language models as subjects of probes: a wrapped model, its tokenizer, and prompts from text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from loopprobe.errors import LoopprobeError
from loopprobe.store.shipped import shipped_language_models, whole_folder
from loopprobe.store.subject import PromptSpec
from loopprobe.store.wrapped_subject import WrappedSubject
from loopprobe.tasks.protocol import Outputs
from loopprobe.tasks.text import TextPrompts
from loopprobe.tasks.text_lines import batches_of_jsonl
from loopprobe.tasks.text_sources import batches_of_texts
from loopprobe.tasks.text_windows import from_file
from loopprobe.wrapped.loading import PREFIX, read_language_model
from loopprobe.wrapped.model import WrappedModel

WINDOW = 128  # tokens of a window of a text file, where no length is given


@dataclass(repr=False)
class LanguageModel(WrappedSubject):
    """A looped language model, as ``load_checkpoint("hf:…")`` gives it.

    Attributes:
        model: the wrapped model, in eval mode.
        tokenizer: its tokenizer.
        name: the name that it was loaded by.
        alias: the label to use where the last part of the name is not unique among the models shown.
        files: the paths of the text files that prompts were drawn from, by their names.
    """

    model: WrappedModel
    tokenizer: Any
    name: str
    alias: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def task_name(self) -> str:
        """What the model was trained to do."""
        return "next token" if self.is_causal else "masked token"

    @property
    def is_causal(self) -> bool:
        """Whether a token's state depends on no later token."""
        return "causal" in self.model.supports

    @property
    def task_record(self) -> dict[str, Any]:
        """The task as plain data."""
        return {"name": self.task_name}

    def __repr__(self) -> str:
        """Describe the model in two lines."""
        return self.described(type(self.model.module).__name__)

    def draw(self, spec: PromptSpec) -> TextPrompts:
        """Make the prompts of a specification: of texts, of pairs in a JSONL file, or of windows of a text file.

        Raises:
            LoopprobeError: the specification names no text, several sources, or what only other tasks have; or the
                texts have several lengths, of which ``batches`` makes one batch each.
        """
        batches = self.batches(spec)
        if len(batches) > 1:
            sizes = ", ".join(dict.fromkeys(str(clean.n_tokens) for clean, _ in batches))
            cut = "" if spec.text_pairs or spec.chat or not self.is_causal else ", or cut them with --length"
            raise LoopprobeError(
                f"the prompts are read at different tokens or have several lengths ({sizes} tokens), and one batch is "
                f"asked for: give texts that are alike{cut}"
            )
        return batches[0][0]

    def batches(self, spec: PromptSpec) -> list[tuple[TextPrompts, TextPrompts | None]]:
        """Make the prompts of a specification, and the corrupted ones where it has them.

        Prompts of other lengths are another batch, so that none is padded: each is exactly what it is alone.

        Returns:
            A batch for each number of tokens, the shortest first; of masked models for each place of the mask too.

        Raises:
            LoopprobeError: as in ``draw``.
        """
        sources = {"text": spec.text, "text_file": spec.text_file, "pairs": spec.text_pairs}
        given = [name for name, value in sources.items() if value]
        for name in ("shift", "data", "target"):
            if getattr(spec, name) is not None:
                raise LoopprobeError(f"{name} ({getattr(spec, name)}) is of regression tasks: leave it out")
        if len(given) != 1:
            raise LoopprobeError(
                f"{self.label} reads text, and {'none' if not given else ' and '.join(given)} is given: give one of "
                "--text, --text-file and --pairs"
            )
        masked = not self.is_causal
        batches: list[tuple[TextPrompts, TextPrompts | None]]
        if spec.text_file:
            windows = (spec.text_file, self.tokenizer, spec.length or WINDOW, spec.prompts, spec.seed)
            batches = [(from_file(*windows, masked=masked), None)]
            self.files[Path(spec.text_file).name] = spec.text_file
        elif spec.text_pairs:
            if spec.length is not None:
                raise LoopprobeError(
                    f"length ({spec.length}) does not go with pairs, which are read whole: leave it out"
                )
            batches = batches_of_jsonl(spec.text_pairs, self.tokenizer, read=spec.read, chat=spec.chat, masked=masked)
        else:
            options: dict[str, Any] = {"length": spec.length, "chat": spec.chat, "masked": masked}
            batches = [(one, None) for one in batches_of_texts(spec.text, self.tokenizer, read=spec.read, **options)]
        for prompts, _ in batches:
            self._require(prompts)
        return [
            (self._answered(prompts.to(self.device)), None if other is None else other.to(self.device))
            for prompts, other in batches
        ]

    def _answered(self, prompts: TextPrompts) -> TextPrompts:
        """The same prompts, with the model's own answers where none is known."""
        if prompts.knows_answers:
            return prompts
        with torch.no_grad():
            return prompts.answered(self.model(*prompts.inputs, keep_loops=1, read_at=prompts.read_at))

    def _require(self, prompts: TextPrompts) -> None:
        if prompts.n_tokens > self.model.sizes.n_ctx:
            raise LoopprobeError(
                f"the prompts have {prompts.n_tokens} tokens and {self.label} reads {self.model.sizes.n_ctx}: cut them"
            )
        if prompts.answers.max() >= self.model.value_size:
            raise LoopprobeError(
                f"an answer is token {int(prompts.answers.max())} and {self.label} knows {self.model.value_size}: give "
                "the tokenizer of the model"
            )

    def more_like(self, prompts: TextPrompts, n_prompts: int, seed: int) -> TextPrompts:
        """Draw further windows of the text file that the prompts are of, from its other half, to fit on.

        Raises:
            LoopprobeError: the prompts are of no text file.
        """
        if not self.is_of_task(prompts):
            raise LoopprobeError("further prompts come from a text file alone: give --text-file, or training=")
        masked = not self.is_causal
        path, length = self.files[prompts.origin["file"]], prompts.origin["length"]
        windows = (path, self.tokenizer, length, n_prompts, seed)
        return from_file(*windows, part="train", masked=masked).to(self.device)

    def is_of_task(self, prompts: Any) -> bool:
        """Check that prompts are windows of a text file."""
        return isinstance(prompts, TextPrompts) and "length" in prompts.origin and prompts.origin["file"] in self.files

    def loops_of(self, prompts: Any) -> int:
        """Return the number of loops that the model runs."""
        return self.model.sizes.n_loops

    def optimum(self, prompts: TextPrompts) -> tuple[str, Outputs]:
        """Return that the best predictor of text is unknown: NaN in the shape of outputs, without their memory."""
        shape = (prompts.n_prompts, prompts.n_answers, self.model.value_size)
        return "unknown", torch.full((1, 1, 1), torch.nan, device=self.device).expand(shape)


def source_of(name: str) -> tuple[str, str | None]:
    """Return the folder or the hub's name that ``hf:NAME`` or ``hf:NAME@REVISION`` means, and the revision.

    Raises:
        LoopprobeError: nothing is named, or a revision of a folder, which holds one version alone.
    """
    text = name.removeprefix(PREFIX)
    if folder := _folder_of(text):
        return folder, None
    source, _, revision = text.partition("@")
    if not source:
        raise LoopprobeError(f"{name!r} names no model: give hf:NAME, such as hf:ByteDance/Ouro-1.4B, or hf:FOLDER")
    _require_no_folder(source, revision)
    return source, revision or None


def _folder_of(text: str) -> str | None:
    """The folder that a name means: its own, or that of a model that ships; None: it is of the hub."""
    if text and Path(text).is_dir():
        return text
    shipped = shipped_language_models().get(text)
    return None if shipped is None else str(whole_folder(shipped))


def _require_no_folder(source: str, revision: str | None) -> None:
    """Raise LoopprobeError where a revision is asked of a folder, rather than read another version than that."""
    if (folder := _folder_of(source)) is not None:
        where = "is a folder" if folder == source else "ships with loopprobe"
        raise LoopprobeError(f"{source} {where}, which has no revisions (@{revision}): give hf:{source} alone")


def load_language_model(name: str, device: str | torch.device = "cpu", **options: Any) -> LanguageModel:
    """Load a looped language model by ``hf:NAME``, see ``wrapped.loading.read_language_model`` for the options.

    Raises:
        LoopprobeError: see there.
    """
    source, revision = source_of(name)
    if options.get("revision") is not None:
        _require_no_folder(name.removeprefix(PREFIX), options["revision"])
    model, tokenizer = read_language_model(source, revision=options.pop("revision", revision), device=device, **options)
    return LanguageModel(model, tokenizer, name)
