"""What is explored: a model with prompts, asked for views again and again, one run at a time."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from loopprobe.config.strict import build, configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.explore import ExploreConfig, changeable
from loopprobe.probes.registry import PROBES
from loopprobe.show.explore.html import Html
from loopprobe.show.explore.page import effects_of, explorer_page, view_of
from loopprobe.store.language import LanguageModel
from loopprobe.store.subject import PromptSpec, Subject
from loopprobe.support.threads import go_on
from loopprobe.tasks import PromptBatch, TokenPrompts

MOST_LOOPS = 2000  # that the page may ask for
MOST_TEXT = 20_000  # characters of a text that the page may send
SHOWN = 3  # prompts that a page without a server holds
EXAMPLE = "The function returns an array of the same shape"  # what a language model reads until it is given a text


@configuration
class Chosen:
    """The prompts that the page asks for, as far as the model's task leaves a choice; None: those of the start.

    Attributes:
        seed: of held-out prompts.
        length: of prompts of a token task.
        text: what a language model reads.
    """

    seed: NonNegativeInt | None = None
    length: PositiveInt | None = None
    text: str | None = None


@configuration
class Asked:
    """What the page asks the server for.

    Attributes:
        prompts: which prompts.
        options: the loops, the prompt that is seen, and what is changed.
        corruption: of effects, how the prompt is corrupted; None: the usual way.
        exact: of effects, whether every patch is run.
    """

    prompts: Chosen = dataclasses.field(default_factory=Chosen)
    options: ExploreConfig = dataclasses.field(default_factory=ExploreConfig)
    corruption: str | None = None
    exact: bool = True


class Exploration(Html):
    """A model with prompts: a page of linked views of its runs, for a notebook, a file or a browser.

    ``explore`` makes one. In a notebook it shows itself; ``save(path)`` writes the page with the clean runs of the
    first prompts, ``show()`` opens it, and ``serve()`` opens the same page with live runs.

    Args:
        subject: the model with its task.
        prompts: the prompts.
        spec: from which they were drawn, so that the page may draw others; None: these alone are explored.
        loops: iterations; None: as many as the training gives such prompts.
        shown: prompts whose runs a saved page holds.
        effects: whether it holds the effects of patches on them too.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: PromptBatch,
        spec: PromptSpec | None = None,
        loops: int | None = None,
        shown: int = SHOWN,
        effects: bool = False,
    ) -> None:
        self.subject, self.spec, self.loops, self.patches = subject, spec, loops, effects
        self.lock = threading.Lock()  # hooks of two runs at once must not mix, nor their memory
        self.prompts: Any = prompts
        self._drawn: tuple[Chosen, Any] = (Chosen(), self.prompts)
        self.shown = min(shown, self.prompts.n_prompts)
        if self.shown < 1:
            raise LoopprobeError(f"shown ({shown}) must be at least 1, of at least one prompt: raise it")
        self.check(Asked(options=ExploreConfig(loops=loops)), self.prompts)

    def __repr__(self) -> str:
        """Describe what is explored in a line."""
        return f"Exploration({self.subject.label}, {self.prompts!r}): save(path), show() or serve()"

    @property
    def title(self) -> str:
        """What is explored."""
        return f"{self.subject.label}, loop by loop"

    def asked(self, tree: Mapping[str, Any]) -> Asked:
        """Read what the page sends.

        Raises:
            LoopprobeError: it is not what the page may ask for.
        """
        asked: Asked = build(Asked, tree)
        loops, text = asked.options.loops, asked.prompts.text
        if loops is not None and loops > MOST_LOOPS:
            raise LoopprobeError(f"loops ({loops:,}) must be at most {MOST_LOOPS:,} on a page: lower it")
        if text is not None and len(text) > MOST_TEXT:
            raise LoopprobeError(f"the text has {len(text):,} characters, the most are {MOST_TEXT:,}: shorten it")
        for name, offered in self.offers.items():
            if getattr(asked.prompts, name) is not None and not offered:
                raise LoopprobeError(f"{name} is no choice for these prompts: leave it out")
        return asked

    def check(self, asked: Asked, prompts: PromptBatch) -> None:
        """Raise LoopprobeError where the prompts, the loops or the change do not go together."""
        PROBES["explore"].require(self.subject, prompts, asked.options)

    def chosen(self, chosen: Chosen) -> Any:
        """Draw the prompts that are asked for; the last ones are kept.

        Raises:
            LoopprobeError: the model cannot read such prompts.
        """
        if chosen == Chosen():
            return self.prompts
        if chosen != self._drawn[0]:
            spec = self.spec or PromptSpec(read="all")
            fields = {name: value for name, value in dataclasses.asdict(chosen).items() if value is not None}
            if "text" in fields:
                fields |= {"text": (fields["text"],), "text_file": None, "text_pairs": None, "length": None}
            self._drawn = chosen, self.subject.draw(dataclasses.replace(spec, **fields))
        return self._drawn[1]

    def view(self, tree: Mapping[str, Any]) -> Any:
        """Run what the page asks for, and return a view of it as plain data.

        Args:
            tree: the fields of ``Asked``.

        Raises:
            LoopprobeError: the request does not fit the model, the prompts or the memory.
        """
        asked = self.asked(tree)
        with self.lock:
            return self._view(asked, self.chosen(asked.prompts))

    def _view(self, asked: Asked, prompts: Any) -> Any:
        options = dataclasses.replace(asked.options, loops=asked.options.loops or self.loops)
        self.check(dataclasses.replace(asked, options=options), prompts)
        return view_of(PROBES["explore"].run(self.subject, prompts, options, _stopping))

    def effects(self, tree: Mapping[str, Any]) -> Any:
        """Patch the state of one prompt, place by place, and return the effects as plain data.

        Raises:
            LoopprobeError: as in ``view``, or the prompt cannot be corrupted so.
        """
        asked = self.asked(tree)
        with self.lock:
            return self._effects(asked, self.chosen(asked.prompts))

    def _effects(self, asked: Asked, prompts: Any) -> Any:
        probe, options = PROBES["patch"], asked.options
        self.check(Asked(options=ExploreConfig(prompt=options.prompt)), prompts)
        one = prompts[options.prompt : options.prompt + 1]
        fields = {"corruption": asked.corruption, "loops": options.loops or self.loops, "exact": asked.exact}
        config = build(probe.config, {"sites": ("z",), **fields})
        probe.require(self.subject, one, config)
        return effects_of(probe.run(self.subject, one, config, _stopping))

    @property
    def offers(self) -> dict[str, bool]:
        """What the page may choose of the prompts: their seed and length, or a text."""
        drawn = self.spec is not None and self.spec.data is None
        reads_text = isinstance(self.subject, LanguageModel)
        return {
            "seed": drawn and not reads_text,
            "length": drawn and isinstance(self.prompts, TokenPrompts),
            "text": reads_text,
        }

    def facts(self, live: bool) -> dict[str, Any]:
        """Return what the page's script needs to know besides views.

        Args:
            live: whether a server answers it.
        """
        model, spec, prompts = self.subject.model, self.spec, self.prompts
        patches = "map" in model.supports
        return {
            "live": live,
            "able": changeable(model),
            "offers": self.offers,
            "layers": model.sizes.n_layers,
            "corruptions": [kind for kind in prompts.corruptions if kind != "prompt"] if patches else [],
            "asked": {
                "loops": self.loops or self.subject.loops_of(prompts),
                "seed": spec.seed if spec else None,
                "length": getattr(prompts, "length", None) if self.offers["length"] else None,
                "text": spec.text[0] if spec and spec.text else "",
            },
        }

    def html(self, live: bool = False) -> str:
        """Return the page.

        Args:
            live: with the first prompt alone, for a server that answers for the others and for changes.
        """
        asked = [Asked(options=ExploreConfig(prompt=i)) for i in range(1 if live else self.shown)]
        with self.lock:
            views = {one.options.prompt: self._view(one, self.prompts) for one in asked}
            if self.patches:
                for one in asked:
                    views[one.options.prompt]["effects"] = self._effects(one, self.prompts)
        model = self.subject.model.sizes
        about = (
            f"{self.subject.task_name.replace('_', ' ')}; b = {model.n_loops} loop{'s' * (model.n_loops != 1)} of "
            f"{model.n_layers} layer{'s' * (model.n_layers != 1)}, {model.n_heads} heads, a state of {model.d_model}."
        )
        return explorer_page(self.title, about, views, self.facts(live))

    def serve(self, port: int = 0, *, browser: bool = True, told: Callable[[str], None] = print) -> None:
        """Open the page with live runs, and answer it on this machine alone until Ctrl-C.

        A run that is under way then stops between two loops.

        Args:
            port: of the loopback address; 0: any that is free.
            browser: whether the page is opened in a browser.
            told: is given the address.

        Raises:
            LoopprobeError: the port is taken.
        """
        from loopprobe.show.explore.server import serve

        serve(self, port, browser=browser, told=told)


def _stopping(steps: Iterable[Any]) -> Iterable[Any]:
    """Pass steps on, and stop between two of them where nobody waits for the end."""
    for step in steps:
        go_on()
        yield step
