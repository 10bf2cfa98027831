"""The declaration of a probe, made once, beside its code: everything that runs or shows it asks here."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.model.protocol import Capability, require
from loopprobe.store.subject import Subject
from loopprobe.tasks import PromptBatch, Prompts, TokenPrompts


@dataclass(frozen=True)
class Quantity:
    """What datasets of a probe are compared by: side by side in one figure, and prompt by prompt where it is known.

    The ``statistic`` says how the estimate is made of the samples, and so the estimate of paired differences: their
    ``median``; the ``share`` of prompts that are right, from samples of 1 and 0; or the ``ratio`` Σ s t / Σ t² of
    samples s to what they are a part of, t.

    Attributes:
        name: the variable of the estimate; ``{site}`` stands for the first site that the datasets share.
        samples: the variable with one number a prompt (its dim ``example``); empty where a dataset has none.
        statistic: how the estimate is made of the samples.
        wholes: of a ratio the variable of t, or two of which it is the difference.
        along: the dim that lines are drawn along. Of several the first with four or more values, else the last.
        across: where heat maps are drawn, the dim along their vertical axis; empty where lines are drawn.
        ends: the variables of the interval; empty: ``{name}_low`` and ``{name}_high``, where they are there.
        first: dims of which the first value alone is shown.
        same: options that must be alike, since numbers of other options have another meaning.
        reference: a variable without what was changed, drawn beside the lines; its ends end in ``_low`` and ``_high``.
        unit: what it counts in, where ``{unit}`` stands for the unit of what is measured and ``{step_unit}`` for that
            of steps; empty: the unit of what is measured.
        log: whether a logarithmic axis shows it.
        is_all: whether no table of each dataset need stand beside that of all.
        bounds: between which it tells something, such as 0 and 1 of R²; what lies outside is shown as the bound.
    """

    name: str
    samples: str = ""
    statistic: Literal["median", "share", "ratio"] = "median"
    wholes: tuple[str, ...] = ()
    along: tuple[str, ...] = ("loop",)
    across: str = ""
    ends: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    reference: str = ""
    unit: str = ""
    log: bool = False
    is_all: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True)
class Shown:
    """The functions of ``show`` that draw a probe's datasets, as ``module:function``; empty where there is none.

    Attributes:
        figures: of ``show.figures``, from one dataset to figures by name.
        table: of ``show.tables``, from one dataset to a table, or to None where there is nothing to show.
        compare_figure: from datasets and a title to one figure of all models; with ``panels`` also from what makes a
            panel.
        compare_table: from datasets to one table of all models.
        further_figures, further_table: the same for what only some datasets have: figures by the end of their names,
            and a table or None.
        panels: whether the compare_figure stands in several panels.
        compared: whether a verb shows several models together; a saved question does wherever it can.
        quantities: what datasets are compared by where they do not differ in the model alone, or nothing above shows
            them together: the first that all of them have.
    """

    figures: str = ""
    table: str = ""
    compare_figure: str = ""
    compare_table: str = ""
    further_figures: str = ""
    further_table: str = ""
    panels: bool = False
    compared: bool = False
    quantities: tuple[Quantity, ...] = ()


@dataclass(frozen=True)
class Probe:
    """A probe.

    Attributes:
        name: what the verbs and questions call it.
        config: the class of its options.
        run: from a subject, prompts, options and progress to a dataset.
        check: raises LoopprobeError where the three do not go together, before anything runs.
        shown: how its datasets are shown.
        needs: what the model must be able to do.
        of_points: whether it asks about labelled points, as regression has them, and takes no other prompts.
        of_tokens: whether it asks about lengths of a token task, and takes no other prompts.
        of_weights: whether it reads weights and runs no prompt, so that it is given one of any kind.
        given: what can be given to ``run`` besides: prompts and functions, which no file can hold.
    """

    name: str
    config: type
    run: Callable[..., xr.Dataset]
    check: Callable[..., None]
    shown: Shown
    needs: frozenset[Capability] = frozenset()
    of_points: bool = False
    of_tokens: bool = False
    of_weights: bool = False
    given: tuple[str, ...] = ()

    def require(self, subject: Subject, prompts: PromptBatch, config: Any, given: Collection[str] = ()) -> None:
        """Check everything before anything runs, but for options where something is ``given``: ``run`` checks them.

        Raises:
            LoopprobeError: the model lacks what the probe needs, the prompts are of another kind, or they and the
                options do not go together.
        """
        require(subject.model, self.needs, subject.label, self.name)
        if self.of_points and not isinstance(prompts, Prompts):
            raise LoopprobeError(
                f"{self.name} asks about labelled points and these prompts are {type(prompts).__name__}: choose a "
                "model of a regression task, or another probe"
            )
        if self.of_tokens and not isinstance(prompts, TokenPrompts):
            raise LoopprobeError(
                f"{self.name} asks about lengths of a token task and these prompts are {type(prompts).__name__}: "
                "choose a model of a token task, or another probe"
            )
        if not given:
            self.check(subject, config, prompts)
