"""Sparse dictionaries over loop states: which features are there, in which loops, and what it costs to ablate one.

A dictionary that all loops share is compared with one for each loop. They are top-k sparse autoencoders, trained here
(``probes.dictionaries``): scikit-learn's dictionary learning has no encoder that an edit of a running model could use.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import xarray as xr

from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.dictionaries import variables_of
from loopprobe.probes.directions import states_at
from loopprobe.probes.feature_fits import GAUSSIAN, IN_EACH, IN_TOTAL, OTHER_SEED, SHARED, Fitted, fit_all
from loopprobe.probes.feature_runs import Effects, edited_runs
from loopprobe.probes.feature_scores import LIFETIMES, explained, found_again, gains, lifetimes, lives
from loopprobe.probes.features_plan import FeaturesConfig, FeaturesPlan
from loopprobe.probes.loops import require_training, training_prompts
from loopprobe.probes.measures import Function, Measure, find_measure
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import median_interval
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

EFFECTS = ("", "control_", "against_control_", "replaced_")


def run(
    subject: Subject,
    prompts: PromptBatch,
    config: FeaturesConfig,
    progress: Progress = lambda steps: steps,
    *,
    training: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
    dictionary: str | xr.Dataset | None = None,
) -> xr.Dataset:
    """Train dictionaries of states, compare them on held-out prompts, and ablate features.

    Args:
        subject, prompts, config: the model, the held-out prompts, and the options.
        progress: wraps the trainings, or the steps of a single one, and the edited runs.
        training: prompts whose states dictionaries are trained on; None: further ones of the model's task.
        measure: what is measured, where it is no name, see ``probes.measures.find_measure``.
        dictionary: a dataset of this probe, or its file, whose dictionary is used instead of a new one.

    Returns:
        A dataset with dims ``dictionary`` (``shared``, and what it is compared with), ``loop`` (loops done, from 1),
        ``feature`` (of the shared dictionary, from 0, the most active in training first), ``dim``, ``shown`` (the
        features that are looked at), ``position``, ``control`` and ``example``:

        * ``explained [dictionary, loop]`` with its ends: 1 − Σ ‖z − ẑ‖² / Σ ‖z − z̄‖² on held-out states, where z̄ is
          the mean state of the loop; ``explained_over_loops``, the same with all loops counted alike; 95 % intervals
          from a bootstrap over prompts
        * ``n_features [dictionary]``: of all loops together, 0 for principal components
        * ``dead [dictionary]``: the share of features that are active in no held-out state
        * ``shared_gain [dictionary]`` with its ends: ``explained_over_loops`` of the shared one minus that of each
          other one on the same states, paired prompt by prompt; missing for Gaussian states
        * ``rate``, ``activation [feature, loop]``: the share of held-out states in which a feature is active, and its
          mean activation over all of them, in the unit of states
        * ``lives [feature, loop]``: whether that is at least the share ``lives`` of its largest over the loops
        * ``lifetime [feature]``: all loops, a run of loops, one loop, loops apart, or dead, and ``lifetimes
          [dictionary, kind]`` their numbers, of dictionaries that loops share
        * ``found_again``, ``found_in_gaussian [feature]``: the cosine of a feature with its partner of another seed,
          and with that in a dictionary of Gaussian states
        * ``decoder``, ``encoder [feature, dim]``, ``bias [feature]``, ``offset [dim]``: the shared dictionary
        * ``map_rate``, ``map_activation [shown, loop, position]``: where a feature is active
        * ``effect [shown, example]``: the measure of the run from whose state the feature's contribution is taken at
          the chosen loops and tokens, minus that of the run as it is, ``clean [example]``; ``median`` with its ends;
          ``control_effect [control, shown, example]``, where as much is taken in random directions, with
          ``control_median``; and ``against_control_median``, the paired difference
        * ``replaced_effect [dictionary, example]``, ``replaced_median``: the same of the run whose state is what a
          dictionary decodes, at the chosen loops and tokens

        ``attrs["fitted_on"]`` and ``["dictionary_of"]`` say of which prompts and which model the states are that the
        dictionaries were trained on.

    Raises:
        LoopprobeError: options, prompts, the dictionary or the measure do not fit the model.
    """
    if isinstance(dictionary, str):
        config, dictionary = dataclasses.replace(config, dictionary=dictionary), None
    check(subject, config, prompts, training=training, measure=measure, dictionary=dictionary)
    prompts = prompts.to(subject.device)
    plan = FeaturesPlan.of(subject, prompts, config, dictionary)
    chosen = find_measure(config.measure if measure is None else measure, prompts)
    held_out = states_at(subject.model, prompts, plan.loops, plan.tokens, single=True)
    if plan.given is not None:
        dictionaries, source = plan.given
        fitted = {SHARED: Fitted.of(dictionaries.to(held_out.device), held_out)}
        fitted_on = source.attrs.get("fitted_on", "prompts that nobody recorded")
        dictionary_of = source.attrs.get("dictionary_of", "a model that nobody recorded")
    else:
        seed = prompts.origin.get("held_out_seed", 0) + 1
        fitting, fitted_on = training_prompts(subject, prompts, config.fit_prompts, seed, training)
        states = states_at(subject.model, fitting, plan.loops, plan.tokens, single=True)
        fitted, dictionary_of = fit_all(states, held_out, plan, config, progress), subject.name
    shared, scores = fitted[SHARED].known
    strongest = np.argsort(-scores.by_loop.mean(0), kind="stable")
    shown = [int(i) for i in strongest[: config.top]] if plan.chosen is None else plan.chosen
    replacing = {name: fitted[name].known[0] for name in (SHARED, IN_TOTAL, IN_EACH) if name in fitted}
    effects = edited_runs(
        subject.model, prompts, plan.edits, shared, shown, list(replacing.values()),
        chosen, config.controls, config.seed, progress,
    )  # fmt: skip
    data = _compared(subject, plan, config, fitted)
    data = data.merge(_features(plan, config, fitted, shown))
    data = data.merge(_effects(effects, shown, list(replacing), list(fitted)))
    for name in ("clean", "effect", "control_effect", "replaced_effect", *(f"{one}median" for one in EFFECTS)):
        data[name].attrs["units"] = chosen.unit
    data.attrs |= {"measure": chosen.name, "measure_unit": chosen.unit, "measure_source": chosen.source}
    data.attrs |= {"k": plan.k, "fitted_on": fitted_on, "dictionary_of": dictionary_of}
    data.attrs |= {"ablated_after": list(plan.edits.pushed), "read_after": plan.edits.read_loop}
    data.attrs |= {"ablated_at": list(plan.edits.tokens)}
    config = dataclasses.replace(config, measure=chosen.option)
    return stamp(data, "features", subject, prompts, config, chosen.record)


def check(
    subject: Subject,
    config: FeaturesConfig,
    prompts: PromptBatch,
    *,
    training: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
    dictionary: str | xr.Dataset | None = None,
) -> None:
    """Raise LoopprobeError where the options do not fit the model or the prompts, before anything runs."""
    find_measure(config.measure if measure is None else measure, prompts)
    plan = FeaturesPlan.of(subject, prompts, config, dictionary)
    if plan.given is None:
        require_training(subject, prompts, training)


def _compared(subject: Subject, plan: FeaturesPlan, config: FeaturesConfig, fitted: dict[str, Fitted]) -> xr.Dataset:
    """What each dictionary explains, how many of its features are dead, and how long they live."""
    spreads = [one.spread for one in fitted.values()]
    variables = explained([one.left for one in fitted.values()], spreads)
    sizes = [0 if one.dictionaries is None else one.dictionaries.decoder.shape[:2].numel() for one in fitted.values()]
    variables["n_features"] = (("dictionary",), np.array(sizes))
    dead = [np.nan if one.scores is None else one.scores.dead for one in fitted.values()]
    variables["dead"] = (("dictionary",), np.array(dead))
    counts = np.full((len(fitted), len(LIFETIMES)), np.nan)
    for row, one in zip(counts, fitted.values(), strict=True):
        if one.scores is not None and not one.scores.one_a_loop:
            row[:] = np.bincount(lifetimes(lives(one.scores.by_loop, config.lives)), minlength=len(LIFETIMES))
    variables["lifetimes"] = (("dictionary", "kind"), counts)
    same = [name for name in fitted if name != GAUSSIAN]  # scored on the same states
    more = xr.Dataset(
        with_ends("shared_gain", ("dictionary",), gains([fitted[name].left for name in same], fitted[SHARED].spread)),
        coords={"dictionary": same},
    ).reindex(dictionary=list(fitted))
    coords = {
        "dictionary": list(fitted), "loop": list(plan.loops), "kind": list(LIFETIMES), "model": subject.label,
        "feature": np.arange(plan.n_features),
    }  # fmt: skip
    return xr.Dataset(variables, coords=coords).merge(more)


def _features(plan: FeaturesPlan, config: FeaturesConfig, fitted: dict[str, Fitted], shown: list[int]) -> xr.Dataset:
    """Each feature of the shared dictionary: its direction, where it is active, how long it lives, and who has it."""
    dictionary, scores = fitted[SHARED].known
    lived = lives(scores.by_loop, config.lives)
    variables = variables_of(dictionary)
    of_loop, of_shown = ("feature", "loop"), ("shown", "loop", "position")
    variables |= {
        "rate": (of_loop, scores.rate.mean(1).T),
        "activation": (of_loop, scores.by_loop.T),
        "lives": (of_loop, lived.T),
        "lifetime": (("feature",), np.array(LIFETIMES)[lifetimes(lived)]),
        "map_rate": (of_shown, scores.rate[:, :, shown].transpose(2, 0, 1)),
        "map_activation": (of_shown, scores.activation[:, :, shown].transpose(2, 0, 1)),
    }
    for variable, name in (("found_again", OTHER_SEED), ("found_in_gaussian", GAUSSIAN)):
        if name in fitted:
            other, its_scores = fitted[name].known
            cosines = found_again(dictionary.decoder[0], scores.alive, other.decoder[0], its_scores.alive)
            variables[variable] = (("feature",), cosines)
    return xr.Dataset(variables, coords={"shown": shown, "position": plan.tokens})


def _effects(effects: Effects, shown: list[int], replacing: list[str], dictionaries: list[str]) -> xr.Dataset:
    """Label the effects, and summarise them over prompts."""
    against = effects.ablated - effects.random.mean(0)
    replaced = xr.Dataset(
        {
            "replaced_effect": (("dictionary", "example"), effects.replaced),
            **with_ends("replaced_median", ("dictionary",), median_interval(effects.replaced)),
        },
        coords={"dictionary": replacing},
    ).reindex(dictionary=dictionaries)
    of_features = {
        "clean": (("example",), effects.clean),
        "effect": (("shown", "example"), effects.ablated),
        "control_effect": (("control", "shown", "example"), effects.random),
        **with_ends("median", ("shown",), median_interval(effects.ablated)),
        **with_ends("control_median", ("shown",), median_interval(effects.random.mean(0))),
        **with_ends("against_control_median", ("shown",), median_interval(against)),
    }
    coords = {"shown": shown, "control": np.arange(1, len(effects.random) + 1)}
    return xr.Dataset(of_features, coords=coords).merge(replaced)


PROBE = Probe(
    "features",
    FeaturesConfig,
    run,
    check,
    Shown(
        "features:features_figures",
        "features:features_table",
        "features:dictionaries_figure",
        "features:dictionaries_table",
        compared=True,
        quantities=(Quantity("explained", first=("dictionary",), unit="explained variance"),),
    ),
    needs=frozenset({"map"}),
    given=("training", "measure", "dictionary"),
)
