"""Methods: what the report says of its models, prompts and statistics, and of what was not tested."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from loopprobe.config.schema import TrainConfig, kind_of, without_seed
from loopprobe.probes.dataset import Stamp, read_stamp
from loopprobe.study.saved import Answered
from loopprobe.study.verdicts import Verdict

STATISTICS = """\
The unit of a claim is the seed: a number is computed for every seed, such as the median error over its prompts or
the share of prompts that fail (an error above 0.1), and its interval is Student's over seeds, with what the choice
of prompts adds. A kind of models with one seed takes the variance that seeds of the other kinds of its claim have.
Of findings about “these alone” the models are those that are named, and the interval is over prompts. An interval
supports a claim when the whole of it lies in the claimed range, contradicts it when the whole of it lies outside,
and otherwise decides nothing. A claim is held first against the mean over its findings, each of a kind of models, or
against every finding where opposite effects would cancel in a mean. It is supported when the 95 % intervals of these
all support it (as all must, this takes no correction for their number) and no finding contradicts it. Single
findings are looked at by wider intervals that hold together with 95 %. A claim is mixed when something supports and
something contradicts it, contradicted when something does and nothing supports it, and else undecided. Thresholds
are below with their reasons; the table of claims says which verdicts would change if each were half or twice as far
from what it is measured from: no effect, chance, all or none (–: there is no such threshold). Where the planned
seeds, five or in R8 three, left a claim of R2, R8 or R14 undecided, the full run looks at it once more, with up to
two further seeds of every kind that decides it; of the two of p-hop one has not learnt the task and is left out.
`benchmarks/intervals.py` measures how often these intervals hold the truth, how often a claim that is exactly at its
threshold is decided at either look, and how alike seeds of different kinds are that start from the same random
numbers. Where kinds have three seeds or fewer, intervals hold less often than they say."""

LIMITS = """\
Schedules of R3 end with b = 20, which none of the study's fixed b (5, 10 and 15) has: what they gain may be that of
a larger b. R7 compares steps of trainings of one recipe, whose prompts grow over the first 0.4 of the steps and
whose rates fall over the last half: that brings the steps of all kinds near to each other, whatever their layers.
R13 leaves out kinds of models of which a seed has fewer than five prompts that fail, R12 what an untrained model
holds as well, for it stands in the tokens, and R6 models of which nearly all tokens rest, where it asks whether more
do. Decoding in R8 is of two models, one looped and one ordinary. Of the study's own recipe there are few models, so
that its column is mostly empty."""


def stamps(answers: Mapping[str, Answered]) -> dict[str, Stamp]:
    """Return the stamp of every model that was asked, by its label."""
    return {str(data.model.item()): read_stamp(data) for a in answers.values() for data in a.datasets}


def methods(answers: Mapping[str, Answered]) -> dict[str, str]:
    """Return the paragraphs of the methods, by what they are about."""
    return {
        "Models": _models(stamps(answers), {name for a in answers.values() for name in a.shipped}),
        "Prompts": _prompts(answers),
        "Statistics": STATISTICS,
        "Limits": LIMITS,
        "Not tested": _missing(answers),
    }


def thresholds(decided: Sequence[Verdict]) -> list[tuple[str, str, str]]:
    """Return what is claimed of a finding, the reason for its ends, and the sections that claim it."""
    sections: dict[tuple[str, str], list[str]] = {}
    for verdict in decided:
        for finding in verdict.findings:
            sections.setdefault((finding.rule, finding.why), []).append(verdict.section)
    return [(rule, why, ", ".join(dict.fromkeys(where))) for (rule, why), where in sections.items()]


def _models(named: Mapping[str, Stamp], shipped: Collection[str]) -> str:
    models = list(named.values())
    kinds = Counter(json.dumps(kind_of(stamp.config), sort_keys=True) for stamp in models)
    configs = [stamp.config for stamp in models]
    trainings = [config["train"] for config in configs if config["train"]]
    tasks = sorted({config["task"]["name"].replace("_", " ") for config in configs})
    recipes = Counter((train["optimizer"].capitalize(), train["steps"]) for train in trainings).most_common()
    trained = [f"{count} by {optimizer} for {steps:,} steps" for (optimizer, steps), count in recipes]
    if trained and (others := len(configs) - len(trainings)):
        trained.append(f"{others} elsewhere")
    return (
        f"{len(models)} models of {len(kinds)} kinds, {_span(kinds.values())} seeds a kind, of width "
        f"{_span(config['model']['d_model'] for config in configs)}, on {', '.join(tasks) or 'no task'}"
        f"{', trained: ' * bool(trained)}{', '.join(trained)}. "
        f"This project's recipe is {TrainConfig.optimizer.capitalize()} for {TrainConfig.steps:,} steps, "
        f"the study's Adam for 20,000.{_answered_before(sorted(shipped))}"
    )


def _answered_before(models: Sequence[str]) -> str:
    """Say whose weights do not ship, and in which order the models that ship were trained."""
    if not models:
        return ""
    return (
        f" The weights of {', '.join(models)} do not ship: their answers do, each with the digest of the weights, and "
        "the grids of the study train such models again. Seeds that undecided claims needed were trained before others "
        "that the questions name."
    )


def _prompts(answers: Mapping[str, Answered]) -> str:
    sizes = [data.sizes["example"] for a in answers.values() for data in a.datasets if "example" in data.sizes]
    return f"{_span(sizes)} held-out prompts a model, which no training has seen, the same for all models of a task."


def _missing(answers: Mapping[str, Answered]) -> str:
    kinds = Counter(map(without_seed, sorted({name for a in answers.values() for name in a.missing})))
    listed = ", ".join(kind if count == 1 else f"{kind} ({count} seeds)" for kind, count in kinds.items())
    named = f"Named by the questions and not trained yet: {listed}. " if kinds else ""
    return (
        f"{named}Noisy regression with b = 20, T = 20, R6 and R7 by the study's own recipe, models of the reference's "
        "size (20 dimensions, width 256) and language models are in no claim."
    )


def _span(numbers: Iterable[float]) -> str:
    """Return the least and the largest of some numbers in words, one where they are the same."""
    found = sorted(set(numbers))
    return " to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1]))) if found else "no"
