"""Verdicts on synthetic results of which each is known."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from conftest import stamped

from loopprobe.errors import LoopprobeError
from loopprobe.study.claims import CLAIMS, check_questions, questions_of, verdicts
from loopprobe.study.claims.evidence import QUESTIONS, kinds
from loopprobe.study.claims.layers import falls_at, flattens_at
from loopprobe.study.decisions import held, parts, would_take
from loopprobe.study.estimates import (
    Estimate,
    Group,
    Spread,
    estimate,
    intervals,
    log_median,
    on_average,
    share_of,
    with_common,
)
from loopprobe.study.forest import forest
from loopprobe.study.rules import about_equal, above, below
from loopprobe.study.saved import saved_questions
from loopprobe.study.verdicts import NO_NUMBER, ONE_SEED, conclude

NAN = float("nan")
EMPTY = dict.fromkeys(QUESTIONS, ())  # every question asked, of no model


def measured(value, spread=0.01, seeds=5, rule=None, scale="ratio", part=""):
    """An estimate whose seeds differ by ``spread``, so that its interval is narrow."""
    spreads = (Spread(spread**2, seeds, seeds - 1),)
    return Estimate("x", rule or below(1), scale, value, spreads, spread**2, part=part)


def each(rule):
    """The same rule, that every finding must obey."""
    return dataclasses.replace(rule, each=True)


@pytest.mark.parametrize(
    ("rule", "interval", "status"),
    [
        (below(1), (0.2, 0.9), "supported"),
        (below(1), (0.8, 1.1), "undecided"),
        (below(1), (1.1, 1.3), "contradicted"),
        (above(2), (2.1, 9), "supported"),
        (above(2), (0.1, 1.9), "contradicted"),
        (about_equal(1.25), (0.9, 1.1), "supported"),
        (about_equal(1.25), (0.7, 1.1), "undecided"),
        (about_equal(1.25), (1.3, 1.4), "contradicted"),
        (about_equal(1.25), (0.1, 0.7), "contradicted"),
        (below(1), (NAN, NAN), "undecided"),
    ],
)
def test_an_interval_against_a_rule(rule, interval, status):
    assert held(interval, rule) == status


FOUND = [  # with the verdict where every finding must hold, and where their mean must
    ([], "undecided", "undecided"),
    (["supported", "supported", "supported"], "supported", "supported"),
    (["supported", "undecided"], "undecided", "supported"),
    (["supported", "contradicted", "undecided"], "mixed", "mixed"),
    (["contradicted", "undecided"], "contradicted", "contradicted"),
    (["contradicted"], "contradicted", "contradicted"),
    (["undecided", "undecided"], "undecided", "undecided"),
]


@pytest.mark.parametrize(("found", "of_each", "of_mean"), FOUND)
def test_findings_to_a_verdict(found, of_each, of_mean):
    values = {"supported": -0.5, "contradicted": 0.5, "undecided": 0.0}
    for rule, status in ((each(below(1)), of_each), (below(1), of_mean)):
        verdict = conclude("R0", "claim", [measured(values[state], rule=rule) for state in found])
        assert verdict.status == status
        assert [finding.status for finding in verdict.findings] == found
        assert len(verdict.means) == (status == of_mean and len(found) > 1 and not rule.each)


def test_every_part_of_a_claim_has_a_mean_that_must_hold():
    """A part is of one kind of number, one rule and one name; one finding is its own mean."""
    good, bad, open_ = (
        [measured(value, part=part) for value in (middle - 0.2, middle + 0.2)]
        for middle, part in ((-0.5, "a"), (0.5, "b"), (0.0, "c"))
    )
    assert conclude("R0", "claim", good).status == "supported"
    assert conclude("R0", "claim", [*good, *open_]).status == "mixed"  # of the open part one finding breaks the rule
    assert conclude("R0", "claim", [*good, measured(0.0, part="c")]).status == "undecided"
    assert conclude("R0", "claim", [*good, measured(-0.5, scale="difference")]).status == "supported"
    assert conclude("R0", "claim", [*good, *bad]).status == "mixed"
    verdict = conclude("R0", "claim", [*good, *bad])
    assert [(mean.what, mean.estimate) for mean in verdict.means] == [
        ("mean over 2 findings: a", pytest.approx(np.exp(-0.5))),
        ("mean over 2 findings: b", pytest.approx(np.exp(0.5))),
    ]
    one_bad = [measured(value) for value in (-0.5, -0.5, -0.5, 0.1)]
    assert conclude("R0", "claim", one_bad).status == "mixed"  # it holds in the mean, but not for every kind


def test_a_claim_is_supported_as_a_whole_or_its_findings_are_looked_at_together():
    """That all hold takes no correction for their number, that one of many breaks or holds does."""
    rule = each(below(1))
    near = measured(np.log(0.8), spread=0.1, rule=rule)  # its own interval ends at 0.99, that of ten together above 1
    assert conclude("R0", "claim", [near] * 10).status == "supported"
    assert conclude("R0", "claim", [near] * 9 + [measured(0.0, rule=rule)]).status == "undecided"
    [*first, last] = conclude("R0", "claim", [near] * 9 + [measured(0.5, rule=rule)]).findings
    assert ({one.status for one in first}, last.status) == ({"undecided"}, "contradicted")
    above_one = measured(-near.value, spread=0.1, rule=rule)
    assert conclude("R0", "claim", [above_one]).status == "contradicted"
    assert conclude("R0", "claim", [above_one, *[measured(0.0, rule=rule)] * 9]).status == "undecided"


def test_the_mean_over_findings_counts_models_that_they_share_once():
    """Of five seeds: (a + b) / 2 - c, and Welch's interval of these two sets of numbers."""
    from scipy.stats import t, ttest_ind

    a, b, c = np.random.default_rng(1).normal([[0.0], [1.0], [0.4]], [[0.3], [0.5], [0.4]], size=(3, 5))
    b += a  # the same seeds
    prompts = np.ones((1, 50))

    def group(logs, *names):
        models = tuple(f"{name}-s{seed}" for name in names for seed in range(5))
        return Group(np.exp(logs)[:, None] * prompts, log_median, models=models)

    pairs = [estimate("x", below(1), "ratio", group(logs, "one"), group(c, "other")) for logs in (a, b)]
    mean = on_average(with_common(pairs))
    welch = ttest_ind((a + b) / 2, c, equal_var=False).confidence_interval(0.95)
    assert intervals([mean], together=False)[0] == pytest.approx(tuple(np.exp(welch)), rel=1e-6)
    cancelled = [
        estimate("x", below(1), "ratio", group(one, "p"), group(other, "q")) for one, other in ((a, c), (c, a))
    ]
    swapped = [estimate("x", below(1), "ratio", *groups) for groups in (
        (group(a, "p"), group(c, "q")), (group(c, "q"), group(a, "p")),
    )]  # fmt: skip
    assert sum(s.variance for s in on_average(swapped).spreads) == pytest.approx(0, abs=1e-30)
    assert sum(s.variance for s in on_average(cancelled).spreads) > 0  # the same numbers of other models do not cancel
    apart = [estimate("x", below(1), "ratio", group(logs, name)) for logs, name in ((a, "p"), (c, "q"))]
    total = (a.var(ddof=1) + c.var(ddof=1)) / 4 / 5
    slack = (a.var(ddof=1) ** 2 + c.var(ddof=1) ** 2) / 4**2 / 5**2 / 4
    half = t.ppf(0.975, total**2 / slack) * np.sqrt(total)
    [ends] = intervals([on_average(with_common(apart))], together=False)
    assert np.log(ends) == pytest.approx((a.mean() + c.mean()) / 2 + np.array([-half, half]), rel=1e-6)


def test_the_mean_over_findings_resamples_the_prompts_of_all_at_once():
    """What prompts add to one finding they take from the other; of each alone they add much."""
    prompts = np.random.default_rng(0).lognormal(0, 1, size=(1, 400))
    up, down = (
        estimate("x", below(1), "ratio", Group(values, log_median, of_seeds="these"))
        for values in (prompts, 1 / prompts)
    )
    assert min(up.of_prompts, down.of_prompts) > 1e-3
    opposite = on_average([up, down])
    assert np.var(opposite.drawn) < 0.2 * up.of_prompts / 2
    assert opposite.of_prompts >= (up.of_prompts + down.of_prompts) / 4  # of prompts that are others it is no less
    assert on_average([up, up]).of_prompts == pytest.approx(up.of_prompts)


def test_a_model_of_one_seed_in_several_findings_is_one_model():
    one = Spread(np.nan, 1, 0, ("m",), (0.0,))
    many = Spread(0.01, 5, 4, tuple(f"n{i}" for i in range(5)), (0.1, 0.2, 0.0, -0.1, -0.2))
    found = with_common([Estimate("x", below(1), "ratio", -1.0, (one, many), 0.0) for _ in range(4)])
    assert {s.variance for e in found for s in e.spreads} == {0.01}
    mean = on_average(found)
    assert sorted(s.variance for s in mean.spreads) == pytest.approx([0.01, np.var(many.numbers, ddof=1)])


def test_a_claim_that_is_undecided_says_what_would_decide_it():
    def taken(*estimates):
        return would_take(parts(estimates))

    of_prompts = dataclasses.replace(measured(np.log(0.9)), of_prompts=1.0)
    assert taken(of_prompts) == "more prompts would decide it, for seeds differ little"
    of_seeds = dataclasses.replace(measured(np.log(0.9), spread=0.12, seeds=3), of_prompts=0.0)
    assert taken(of_seeds) == "more prompts would not decide it, 8 seeds of every kind of model would"
    for seeds, status in ((7, "undecided"), (8, "supported")):  # as the same numbers of so many seeds would have it
        more = dataclasses.replace(of_seeds, spreads=(Spread(0.12**2, seeds, seeds - 1),))
        assert parts([more]).outcome == status
    of_both = dataclasses.replace(of_seeds, of_prompts=1.0)
    needed = "8 seeds of every kind of model and more prompts would"
    assert taken(of_both) == f"more prompts alone would not decide it, {needed}"
    assert taken(measured(0.0)).startswith("neither more prompts nor 50 seeds")
    assert "second seed" in taken(Estimate("x", below(1), "ratio", 0.0, (Spread(NAN, 1, 0),), 1.0))
    for found in ([measured(0.0)], [measured(0.5)], []):
        verdict = conclude("R0", "claim", found)
        assert bool(verdict.takes) == (verdict.status == "undecided")


def test_one_seed_takes_no_variance_of_another_part_of_the_claim():
    """A claim may be about errors and about their logarithms, whose seeds differ by other amounts."""
    alone = [Estimate("x", below(1), "ratio", -1.0, (Spread(NAN, 1, 0),), 0.0, part=part) for part in "ab"]
    known = [measured(-1.0, spread, part=part) for part, spread in zip("ab", (0.1, 0.7), strict=True)]
    filled = with_common([*alone, *known])
    assert [one.spreads[0].variance for one in filled[:2]] == pytest.approx([0.01, 0.49])


def test_more_seeds_of_a_kind_have_a_variance_of_their_own():
    """Two seeds take none from others: Student's interval of a group of eight has seven degrees of freedom."""
    alone = Estimate("x", below(1), "ratio", 0.0, (Spread(NAN, 1, 0),), 0.0)
    [filled, _] = parts([alone, measured(0.0, 0.1, seeds=20)]).with_seeds(8).findings
    [spread] = filled.spreads
    assert (spread.seeds, spread.freedom, spread.is_common) == (8, 7, False)
    assert spread.variance == pytest.approx(0.01)


def test_one_seed_takes_no_variance_of_another_kind_of_number():
    share_of_one = Estimate("x", below(0.5), "share", 0.1, (Spread(NAN, 1, 0),), 0.0)
    [_, finding] = conclude("R0", "claim", [measured(0.0, spread=2.0), share_of_one]).findings
    assert finding.reason == ONE_SEED


def test_thresholds_that_are_moved_can_change_a_verdict():
    verdict = conclude("R0", "claim", [measured(np.log(1.15), rule=below(1.2))])
    assert (verdict.status, verdict.halved, verdict.doubled) == ("supported", "contradicted", "supported")
    most = conclude("R0", "claim", [measured(0.9, rule=above(0.5), scale="share")])
    assert (most.halved, most.doubled) == ("supported", None), "above 0 would be no threshold of a share"
    assert [most.moved(one) for one in (most.halved, most.doubled, "mixed")] == ["same", "–", "mixed"]
    assert str(about_equal(1.25).scaled(2)) == "between 0.6 and 1.5"
    assert str(above(0.95).scaled(0.5)) == "above 0.975"
    assert str(above(-0.01, neutral=0).scaled(2)) == "above -0.02"


def test_a_forest_plot_has_every_finding_with_its_interval_and_the_claimed_range():
    found = [measured(np.log(ratio)) for ratio in (0.2, 1.0, 3.0)] + [measured(0.5, scale="difference")]
    verdict = conclude("R0", "claim", [dataclasses.replace(one, what=f"finding {i}") for i, one in enumerate(found)])
    figure = forest(verdict)
    named = [trace.name for trace in figure.data]
    kinds_of = ("mean: supported", "supported", "contradicted", "undecided", "supported")
    assert named == [name for name in kinds_of for _ in range(2)]
    for trace in figure.data[:8]:
        [finding] = [one for one in (*verdict.means, *verdict.findings) if one.what == trace.y[0]]
        ends = trace.x[0] - trace.error_x.arrayminus[0], trace.x[0], trace.x[0] + trace.error_x.array[0]
        own = finding.low, finding.estimate, finding.high
        together = finding.low_together, finding.estimate, finding.high_together
        assert ends == pytest.approx(own if trace.error_x.thickness > 2 else together)
        assert together[0] < own[0] < own[2] < together[2]
    assert (figure.layout.xaxis.type, figure.layout.xaxis2.type) == ("log", None)
    shaded = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert [shape.x1 for shape in shaded] == [1, 1]  # below 1, in both panels
    assert forest(conclude("R0", "claim", [])) is None


def test_the_effect_is_the_first_mean_or_the_median_where_every_finding_must_hold():
    found = [measured(np.log(ratio), rule=each(below(1))) for ratio in (0.2, 0.3, 0.9)]
    assert conclude("R0", "claim", [*found, measured(0.5, scale="difference")]).effect == (
        "ratio 0.3 (findings from 0.2 to 0.9)"
    )
    found = [measured(np.log(ratio)) for ratio in (0.2, 0.3, 0.9)]
    verdict = conclude("R0", "claim", [*found, measured(0.5, scale="difference")])
    middle, low, high = verdict.size
    assert middle == pytest.approx((0.2 * 0.3 * 0.9) ** (1 / 3))
    assert low < middle < high
    assert (verdict.effect, verdict.span) == (f"ratio {middle:.3g} ({low:.3g} to {high:.3g})", "0.2 to 0.9")
    alone = conclude("R0", "claim", found[:1])
    assert alone.size == (pytest.approx(0.2), alone.findings[0].low, alone.findings[0].high)
    assert alone.span == "0.2"


def test_pairs_stay_paired():
    prompts = np.random.default_rng(0).lognormal(0, 2, size=(1, 500))
    parts = np.stack([1.1 * prompts, prompts], axis=-1)
    paired = estimate("x", above(1), "ratio", Group(parts, log_median, of_seeds="these"))
    [(low, high)] = intervals([paired], together=True)
    assert low == pytest.approx(1.1)
    assert high == pytest.approx(1.1)
    of_groups = estimate("x", above(1), "ratio", *(Group(parts[..., i], log_median, of_seeds="these") for i in (0, 1)))
    assert intervals([of_groups], together=True)[0] == pytest.approx((1.1, 1.1))
    shuffled = np.stack([1.1 * prompts, prompts[:, ::-1]], axis=-1)
    [(low, high)] = intervals(
        [estimate("x", above(1), "ratio", Group(shuffled, log_median, of_seeds="these"))], together=True
    )
    assert low < 1 < high


def test_an_interval_has_the_width_of_theory():
    """Five seeds with log-normal effects: Student's t with four degrees of freedom, and of two groups Welch's."""
    from scipy.stats import t, ttest_ind

    one, other = np.random.default_rng(1).normal([[0.0], [1.0]], 0.3, size=(2, 5))
    prompts = np.ones((1, 50))
    of_one = estimate("x", below(1), "ratio", Group(np.exp(one)[:, None] * prompts, log_median))
    [(low, high)] = intervals([of_one], together=False)
    half = t.ppf(0.975, 4) * one.std(ddof=1) / np.sqrt(5)
    assert (low, high) == pytest.approx(tuple(np.exp(one.mean() + np.array([-half, half]))))
    groups = [Group(np.exp(values)[:, None] * prompts, log_median) for values in (one, other)]
    welch = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    [ends] = intervals([estimate("x", below(1), "ratio", *groups)], together=False)
    assert ends == pytest.approx(tuple(np.exp(welch)), rel=1e-6)


def test_prompts_widen_an_interval_by_what_theory_says():
    """The median of n log-normal errors has a standard error of 1.2533 times that of their mean logarithm."""
    draw = np.random.default_rng(3)
    one = estimate("x", below(1), "ratio", Group(draw.lognormal(size=(1, 4000)), log_median, of_seeds="these"))
    assert one.of_prompts == pytest.approx(1.2533**2 / 4000, rel=0.25)


def test_intervals_of_many_findings_are_wider_so_that_they_hold_together():
    from scipy.stats import t

    three = [measured(0.0, spread=1.0)] * 2 + [measured(NAN)]  # what is no number makes no mistake
    alone, together = (intervals(three, together=choice) for choice in (False, True))
    freedom = 1.2**2 / (0.2**2 / 4)  # of the sum of the variances of five seeds and of the prompts
    half = t.ppf(0.5 + 0.95**0.5 / 2, freedom) * np.sqrt(1.2)
    assert np.log(together[0]) == pytest.approx((-half, half))
    half = t.ppf(0.975, freedom) * np.sqrt(1.2)
    assert np.log(alone[0]) == pytest.approx((-half, half))
    assert np.isnan(together[2]).all()


def test_one_seed_takes_the_variance_of_the_others_or_decides_nothing():
    single, several = Estimate("x", below(1), "ratio", -1.0, (Spread(NAN, 1, 0),), 0.0), measured(-1.0, 0.1)
    assert conclude("R0", "claim", [single]).findings[0].reason == ONE_SEED
    [first, _] = conclude("R0", "claim", [single, several]).findings
    assert first.status == "supported"
    assert not first.reason
    assert conclude("R0", "claim", [measured(-np.inf)]).findings[0].reason == NO_NUMBER


def test_a_variance_that_several_groups_take_is_one():
    """Of two single seeds Student's interval, with the freedom of the seeds that tell how much seeds differ."""
    from scipy.stats import t

    names = [tuple(f"{kind}-s{seed}" for seed in range(5)) for kind in "ab"]
    numbers = tuple(np.sqrt(0.04 / 2.5) * np.arange(-2, 3))
    told = [Spread(0.04, 5, 4, models, numbers) for models in names]
    alone = tuple(Spread(NAN, 1, 0, (kind,), (0.0,)) for kind in "cd")
    both = Estimate("x", below(1), "ratio", -1.0, alone, 0.0)
    others = [Estimate("x", below(1), "ratio", -1.0, (one,), 0.0) for one in [*told, *told]]  # each in two findings
    half = t.ppf(0.975, 8) * np.sqrt(2 * 0.04)
    ends = intervals(with_common([both, *others]), together=False)[0]
    assert np.log(ends) == pytest.approx((-1 - half, -1 + half))
    # in the mean of five findings single seeds are in one, the others in two
    common, own = 2 * 0.04 / 5**2, [0.04 / 5 * (2 / 5) ** 2] * 2
    total = common + sum(own)
    half = t.ppf(0.975, total**2 / (common**2 / 8 + sum(one**2 for one in own) / 4)) * np.sqrt(total)
    [ends] = intervals([on_average(with_common([both, *others]))], together=False)
    assert np.log(ends) == pytest.approx((-1 - half, -1 + half))


def test_few_failures_have_a_width():
    """As Agresti and Coull have it: two more prompts that fail, and two that do not."""
    whole = Group(np.ones((5, 400)), share_of)
    [(low, high)] = intervals([estimate("x", above(0.95), "share", whole)], together=False)
    assert (low, high) == (pytest.approx(1 - 1.96 * np.sqrt(402 / 404 * 2 / 404 / 404), rel=1e-4), 1)
    none = Group(np.zeros((5, 400, 2)), share_of)
    [(low, high)] = intervals([estimate("x", below(0.01), "difference", none)], together=False)
    assert low == pytest.approx(-high)
    assert high == pytest.approx(1.96 * np.sqrt(2 / 402 / 402), rel=1e-4)


# Claims on synthetic datasets


def meta(layers=1, loops=20, window=10, seed=0, grown=False, steps=2000, task="linear_regression", loss="mse"):
    schedule = {"kind": "linear"} if grown else {"kind": "constant"}
    cfg = {
        "model": {"n_layers": layers, "n_loops": loops}, "task": {"name": task},
        "train": {"loop_window": min(window, loops), "seed": seed, "steps": steps, "loops": schedule,
                  "loss": loss},
    }  # fmt: skip
    return stamped(cfg, trained_loops=loops)


NOISE = np.random.default_rng(5).lognormal(0, 0.3, size=1000)


def seeds(make):
    """Make a model of every seed, unless one is named: as a list that evidence may hold."""

    def made(*args, **model):
        return make(*args, **model) if "seed" in model else [make(*args, seed=seed, **model) for seed in range(3)]

    return made


@seeds
def converged(levels, **model):
    """Errors that are ``levels[loop]`` times a noise that all models share."""
    errors = np.array([np.full(1000, level) for level in levels.values()]) * NOISE
    return xr.Dataset({"error": (("loop", "example"), errors)}, {"loop": list(levels)}, meta(**model))


@seeds
def mask_data(level_of, **model):
    n, loops = list(range(0, 32)), [5, 10, 20, 50]
    errors = np.array([[level_of(kept, loop) * NOISE[:200] for loop in loops] for kept in n])
    return xr.Dataset(
        {"error": (("n", "loop", "example"), errors), "clean_error": (("loop", "example"), errors[-1])},
        {"n": n, "loop": loops}, meta(**model),
    )  # fmt: skip


@seeds
def curves(falls, **model):
    step = np.arange(10, 2001, 10)
    error = np.where(step < falls, 1.0, 0.01)
    return xr.Dataset({"error": ("step", error), "loss": ("step", 2 + 3 * error)}, {"step": step}, meta(**model))


def ended(evidence, part):
    return verdict_of(part, evidence).status


def flat(answers):
    return [data for one in answers for data in (one if isinstance(one, list) else [one])]


def test_nothing_is_decided_without_results():
    assert {verdict.status for verdict in verdicts({})} == {"undecided"}
    assert {verdict.status for verdict in verdicts(EMPTY)} == {"undecided"}
    assert len(verdicts({})) == len(CLAIMS) == 46


def test_models_of_the_studys_recipe_have_verdicts_of_their_own_beside_ours():
    steady, lost = converged({20: 1, 500: 1.01}), converged({20: 0.01, 500: 2})
    verdict = verdict_of("stays at its minimum", {"r2_converge": [steady], "r2_converge_study": [lost]})
    assert (verdict.status, verdict.control.status) == ("supported", "contradicted")
    assert verdict.to_dict()["control"]["findings"][0]["estimate"] == pytest.approx(200)
    alone = verdict_of("stays at its minimum", {"r2_converge": [steady]})
    assert (alone.control.findings, alone.control_status) == ((), "–")
    assert {one.section for one in verdicts(EMPTY) if one.control} == {"R1", "R2", "R3", "R4", "R5"}


def test_a_verdict_says_whose_claim_it_is():
    whose = {verdict.claim: verdict.by for verdict in verdicts(EMPTY)}
    assert whose["larger b is better"] == whose["it is better by decimal places"] == "the study"
    assert whose["it stays because the state has come to a fixed point"] == "this project"
    assert whose["XᵀY and w become more decodable with loops"] == "Yang et al. 2023"
    others = {"Yang et al. 2023", "Saunshi et al. 2025", "Fan et al. 2024"}
    assert set(whose.values()) == {"the study", "this project", *others}


@pytest.mark.parametrize(
    ("seeds", "words"),
    [((), "these alone"), ((5,), "5"), ((7, 5), "7 and 5"), ((5, 5, 5), "5 each"), ((7, 5, 7), "5 to 7")],
)
def test_the_seeds_of_a_finding_in_words(seeds, words):
    [finding] = conclude("R0", "claim", [measured(0.0)]).findings
    assert dataclasses.replace(finding, seeds=seeds).of_seeds == words


def test_r1():
    @seeds
    def data(level, **model):
        errors = np.outer(level * NOISE, np.ones(31))
        best = 0.5 * errors / level  # of any model
        variables = {"error": (("example", "point"), best + errors), "optimum": (("example", "point"), best)}
        return xr.Dataset(variables, {}, meta(**model))

    ordinary = data(1.0, layers=12, loops=1, window=1)
    better = [data(level, loops=loops) for level, loops in ((3, 5), (1.9, 10), (1, 20))]
    assert ended({"r1_compare": [ordinary, *better]}, "larger b gives lower loss") == "supported"
    assert ended({"r1_compare": [ordinary, *better]}, "12 times fewer") == "supported"
    assert ended({"r1_compare": [*better[::-1], data(4, loops=25)]}, "larger b gives lower loss") == "mixed"
    worse = verdict_of("gives lower loss", {"r1_compare": [data(1, loops=5), data(2, loops=10)]})
    assert worse.status == "contradicted"
    assert worse.findings[0].estimate == pytest.approx(2), "of what is above the best predictor"
    assert ended({"r1_compare": [ordinary, data(3, loops=20)]}, "12 times fewer") == "contradicted"


def test_r2():
    steady = converged({20: 1, 500: 1.01})
    assert ended({"r2_converge": [steady]}, "stays at its minimum") == "supported"
    assert (
        ended({"r2_converge": [converged({20: 1, 500: 2})]}, "stays at its minimum") == "mixed"
    )  # all fail from the start
    assert ended({"r2_converge": [converged({20: 0.01, 500: 2})]}, "stays at its minimum") == "contradicted"
    assert ended({"r2_converge": [converged({5: 1, 500: 9}, loops=5)]}, "stays at its minimum") == "undecided"
    assert ended({"r2_converge": [steady, converged({10: 2, 500: 2}, loops=10)]}, "larger b is better") == "supported"
    noisy = converged({10: 2, 500: 0.5}, loops=10, task="noisy_linear_regression")
    assert ended({"r2_converge": [steady, noisy]}, "larger b is better") == "undecided"  # other tasks are no pair


def test_r2_recipes():
    def grown(name, growth, loops, seed):
        data = converged({loops: 0.03, 200: 0.03 * growth}, loops=loops, window=5, seed=seed)
        return data.assign_coords(model=name + f"-s{seed}" * bool(seed))

    def answers(recipe, window, ours=9.0):
        kinds_of = (("lr-b5-T5", ours, 5), ("lr-b5-T5-muon_lr0.01", recipe, 5), ("lr-b10-T5", window, 10))
        made = [grown(*kind, seed) for kind in kinds_of for seed in (0, 1)]
        return EMPTY | {"r2_recipes": made}

    for recipe, window in ((9.0, 1.0), (1.0, 9.0)):
        evidence = answers(recipe, window)
        status = {1.0: "supported", 9.0: "contradicted"}
        assert ended(evidence, "another recipe") == status[recipe]
        assert ended(evidence, "beyond the window keep") == status[window]
        [words] = {finding.what.split(":")[0] for finding in verdict_of("another recipe", evidence).findings}
        assert words == "lr-b5-T5-muon_lr0.01"


def test_r3():
    fixed = [
        converged({500: 1.0}, loops=loops, window=window) for loops, window in ((5, 5), (10, 10), (15, 10), (15, 15))
    ]
    grown = [converged({500: 0.5}, window=20, grown=True), converged({500: 1.0}, window=10, grown=True)]
    evidence = {"r3_converge": [*fixed, *grown]}
    assert ended(evidence, "for T = 20") == "supported"
    assert ended(evidence, "cannot be told apart") == "supported"
    assert ended(evidence, "spread much more") == "contradicted"
    spread = verdict_of("spread much more", evidence)
    assert [mean.estimate for mean in spread.means] == pytest.approx([0.5**0.5, 1]), (
        "of errors, and of their logarithms"
    )
    other_steps = converged({500: 9.0}, window=20, grown=True, steps=1000)
    assert ended({"r3_converge": [*fixed, *grown, other_steps]}, "for T = 20") == "supported"


def test_r4_and_r5():
    last, first = mask_data(lambda n, loop: 32 - n), mask_data(lambda n, loop: 32 - n)
    evidence = {"r4_last_n": [last], "r5_first_n": [first]}
    for claim in ("shrinks (last", "shrinks (first", "do not help (last", "do not help (first", "equally", "as memory"):
        assert ended(evidence, claim) == "supported", claim
    other = mask_data(lambda n, loop: (10 + n) / loop)
    evidence = {"r4_last_n": [other], "r5_first_n": [first]}
    for claim in ("shrinks (last", "do not help (last", "equally"):
        assert ended(evidence, claim) == "contradicted", claim
    assert ended({"r4_last_n": [mask_data(lambda n, loop: 1)]}, "as memory") == "contradicted"


def test_r6():
    def grid(*levels, seeds=3):
        pairs = list(zip((1, 2, 4), levels, strict=True))
        return [converged({500: level}, layers=deep, seed=seed) for deep, level in pairs for seed in range(seeds)]

    assert ended({"r6_converge": grid(1, 0.1, 0.01)}, "better fixed point") == "supported"
    assert ended({"r6_converge": grid(1, 0.1, 0.5)}, "better fixed point") == "mixed"
    assert ended({"r6_converge": grid(1, 0.05, 0.002)}, "by decimal places") == "supported"
    assert ended({"r6_converge": grid(1, 0.3, 0.1)}, "by decimal places") == "contradicted"
    assert ended({"r6_converge": grid(1, 0.1, 0.01)}, "every T and seed") == "supported"
    crossed = [
        *grid(1, 0.1, 0.01, seeds=2),
        converged({500: 0.1}, layers=1, seed=2),
        converged({500: 1}, layers=2, seed=2),
    ]
    assert ended({"r6_converge": crossed}, "every T and seed") == "mixed"
    assert len(kinds(crossed)) == 3


@seeds
def rests(share, n=200, **model):
    """A converge dataset in which this share of tokens comes to rest, with some spread over prompts."""
    draw = np.random.default_rng(5).random((n, 50))
    data = converged({20: 1.0, 500: 1.0}, **model)
    data["limit"] = ("followed", "position"), np.where(draw < share, 0, 3)
    data.attrs["far"] = 2000
    return data


@pytest.mark.parametrize(("share", "status"), [(1.0, "supported"), (0.99, "supported"), (0.5, "contradicted")])
def test_r2_rests(share, status):
    assert ended({"r2_converge": [rests(share, loops=20)]}, "it stays because") == status


def test_r6_rests():
    def grid(*shares):
        return {
            "r6_converge": [rests(share, n=1000, layers=deep) for deep, share in zip((1, 2, 4), shares, strict=True)]
        }

    assert ended(grid(0.3, 0.6, 0.9), "more tokens come to a fixed point") == "supported"
    assert ended(grid(0.3, 0.6, 0.4), "more tokens come to a fixed point") == "mixed"
    assert ended(grid(0.5, 0.5, 0.5), "more tokens come to a fixed point") == "contradicted", "as many are not more"
    assert ended(grid(0.5, 1.0, 1.0), "more tokens come to a fixed point") == "supported", "more than all cannot be"


def test_r9():
    def answers(at_b, at_end):
        """Of the log loss; those of the mean squared error are about 1 and 2."""
        ends = [(0.9, 1.75), (1, 2), (1.1, 2.25)]
        seeds = [converged({1: 9, 20: first, 500: last}, seed=seed) for seed, (first, last) in enumerate(ends)]
        log = [converged({1: 9, 20: at_b, 500: at_end}, seed=seed, loss="log") for seed in range(3)]
        return {"r9_converge": [*seeds, *log]}

    lower, lost = "better after b loops", "error grows more"
    assert [ended(answers(0.5, 4), part) for part in (lower, lost)] == ["supported", "supported"]
    assert [ended(answers(2, 1), part) for part in (lower, lost)] == ["contradicted", "contradicted"]
    assert [ended(answers(1, 2), part) for part in (lower, lost)] == ["undecided", "undecided"]
    assert ended(answers(1, 2.3), lost) == "supported"  # the ends of a seed stay together: 1.94 to 2.05
    assert ended({"r9_converge": answers(0.5, 4)["r9_converge"][:3]}, lower) == "undecided"


def test_r13():
    def model(seed, lasting=0.2, lead=3.0, apart=2.0, failing=60):
        """Of 200 prompts some fail in loop 20; a share of them for good, after steps and with signs that are larger."""
        rng = np.random.default_rng(seed)
        fails = np.arange(200) < failing
        course = np.where(fails, np.where(np.arange(200) < lasting * failing, 3, 1), 0)
        step = rng.uniform(0.9, 1.1, (40, 200)) * np.where(fails, lead, 1)
        sign = rng.normal(apart * fails, 1)
        return xr.Dataset(
            {
                "onset": ("example", np.where(fails, 20.0, np.nan)), "prompt_course": ("example", course),
                "query_step": (("loop", "example"), step), "seen": (("sign", "example"), sign[None]),
            },
            {"loop": np.arange(1, 41), "sign": ["state's step"]}, meta(loops=5, window=5, seed=seed),
        )  # fmt: skip

    def asked(**how):
        return {"r13_failures": [model(seed, **how) for seed in range(3)]}

    again, announced, told = "right again later", "its state moves more", "tells whether a prompt"
    assert [ended(asked(), part) for part in (again, announced, told)] == ["supported"] * 3
    others = asked(lasting=0.9, lead=1.0, apart=0.0)
    assert [ended(others, part) for part in (again, announced, told)] == ["contradicted"] * 3
    one = verdict_of(told, asked()).findings[0]
    assert one.estimate == pytest.approx(0.9214, abs=0.02), "two normal distributions 2 apart: Φ(√2)"
    assert verdict_of(announced, asked()).findings[0].estimate == pytest.approx(3, rel=0.02)
    assert verdict_of(again, asked()).findings[0].estimate == pytest.approx(0.8)
    few = verdict_of(again, asked(failing=4))
    assert (few.status, few.findings) == ("undecided", ()), "too few prompts fail"


def test_r14():
    """Two kinds of models of which seeds share some of the best hundredth; the loops do the same, or not."""
    edges = ("from_loop", "sender", "to_loop", "receiver")
    shape = (8, 1, 8, 2)
    possible = np.zeros(shape, bool)
    for t in range(8):
        possible[t, :, t : t + 2, 0] = True
    rng = np.random.default_rng(0)

    def model(seed, kept=0.95, left=0.02, shared=12, alike=True, task="linear_regression"):
        share = np.where(possible, 1.0 if alike else rng.normal(size=shape), np.nan)
        places = np.argwhere(possible)
        own = np.concatenate([places[:shared], places[shared + seed : shared + seed + 1]])
        circuit = np.zeros(shape, bool)
        circuit[tuple(own.T)] = True
        total = rng.normal(size=40) + 3
        moved = {name: np.stack([(1 - value) * total * rng.uniform(0.9, 1.1, 40)] * 2) for name, value in
                 (("kept", kept), ("left", left))}  # fmt: skip
        variables = {f"{name}_moved": (("set", "edges", "measured"), values[None]) for name, values in moved.items()}
        rank = np.full(shape, np.nan)
        rank[possible] = np.where(circuit[possible], 1, shared + 2)
        score = np.where(circuit, 1.0, np.where(possible, 0.1, np.nan))
        return xr.Dataset(
            variables
            | {"share": (edges, share), "exact": (edges, score * np.nan), "rank": (edges, rank),
               "moved": ((*edges, "example"), np.repeat(score[..., None], 5, -1)), "total": ("example", np.ones(5)),
               "measured_total": ("measured", total)},
            {"set": ["ranked"], "edges": [1, 2], "from_loop": np.arange(1, 9), "to_loop": np.arange(1, 9),
             "sender": ["MLP 0"], "receiver": ["MLP 0", "read-out"]},
            meta(loops=8, window=8, seed=seed, task=task) | {"possible": 100 * (shared + 1), "found": 1},
        )  # fmt: skip

    def asked(**how):
        tasks = {"r14_regression": "linear_regression", "r14_tokens": "p_hop"}
        return {name: [model(seed, task=task, **how) for seed in range(3)] for name, task in tasks.items()}

    kept = "a hundredth of the edges keeps", "a tenth", "without the best"
    parts = [*kept, "the same in other seeds", "than random ones", "does what the last one does"]
    assert [ended(asked(), part) for part in parts] == ["supported"] * 6
    others = asked(kept=0.5, left=0.6, shared=0, alike=False)
    assert [ended(others, part) for part in parts] == ["contradicted"] * 6
    of_seeds = verdict_of("the same in other seeds", asked())
    assert [one.estimate for one in of_seeds.findings] == pytest.approx([12 / 14] * 2)
    assert verdict_of("a tenth", asked()).findings[0].estimate == pytest.approx(0.95, abs=0.005)
    assert verdict_of("without the best", asked()).findings[1].estimate == pytest.approx(0.02, abs=0.02)
    assert verdict_of("does what the last", asked()).findings[0].estimate == pytest.approx(1)
    two = {name: datasets[:2] for name, datasets in asked().items()}
    assert ended(two, "the same in other seeds") == "undecided", "one pair does not tell how much pairs differ"


def test_r7():
    def grid(*steps, seeds=3):
        pairs = list(zip((1, 2, 4), steps, strict=True))
        return [curves(at + 20 * seed, layers=deep, seed=seed) for deep, at in pairs for seed in range(seeds)]

    assert ended({"r7_curves": grid(400, 800, 1600)}, "earlier") == "supported"
    assert ended({"r7_curves": grid(800, 400, 1600)}, "earlier") == "mixed"
    assert ended({"r7_curves": grid(1600, 800, 400)}, "earlier") == "contradicted"
    assert ended({"r7_curves": grid(400, 800, 1600, seeds=1)}, "earlier") == "undecided"


def test_where_a_curve_falls_and_flattens():
    data = curves(500, seed=0)
    assert falls_at(data) == pytest.approx(590, abs=10)  # the mean of 100 steps is below 0.1 once nine tenths are new
    assert flattens_at(data) == pytest.approx(580, abs=20)
    assert falls_at(curves(9999, seed=0)) == np.inf


def verdict_of(claim, evidence):
    evidence = {name: flat(answers) for name, answers in evidence.items()}
    [section] = {one.section for one in CLAIMS if claim in one.words}  # of the others no number is needed
    [verdict] = [verdict for verdict in verdicts(EMPTY | evidence, [section]) if claim in verdict.claim]
    return verdict


@seeds
def compared(name, task, loops, level, seed, **config):
    """Errors of one model at every number of examples, around ``level``."""
    errors = level * np.random.default_rng(0).exponential(size=(400, 11))
    cfg = {"task": {"name": task, **config}, "model": {"n_layers": 1, "n_loops": loops}}
    cfg["train"] = {"steps": 2000, "seed": seed}
    return xr.Dataset(
        {"error": (("example", "point"), errors)},
        coords={"point": np.arange(11), "model": name},
        attrs=stamped(cfg),
    )


@pytest.mark.parametrize(("level", "status"), [(0.5, "supported"), (2.0, "contradicted"), (None, "undecided")])
def test_sparse_regression_is_decided_by_the_ratio_with_few_examples(level, status):
    sparse = "sparse_linear_regression"
    models = [compared("ordinary", sparse, 1, 1.0)]
    models += [compared("looped", sparse, 20, level)] if level else []
    models += [compared("signs", sparse, 20, 0.1, labels="sign")]
    assert verdict_of("looped is better than ordinary on sparse", {"r8_sparse": models}).status == status


@pytest.mark.parametrize(("level", "status"), [(0.01, "supported"), (0.1, "contradicted"), (0.04, "undecided")])
def test_sparse_functions_are_found_where_nine_of_ten_prompts_do_not_fail(level, status):
    sparse = "sparse_linear_regression"  # of an exponential 1 - exp(-0.1 / level) is below a failure
    models = [compared("looped", sparse, 20, level), compared("other", "linear_regression", 20, 1.0)]
    verdict = verdict_of("models find them from fewer examples", {"r8_sparse": flat(models)})
    assert verdict.status == status
    [finding] = verdict.findings
    assert finding.estimate == pytest.approx(1 - np.exp(-0.1 / level), abs=0.03)


@pytest.mark.parametrize(("level", "status"), [(1.05, "supported"), (0.5, "contradicted"), (2.0, "contradicted")])
def test_equal_models_are_those_within_a_factor(level, status):
    models = [compared("a", "relu_network", 1, 1.0), compared("b", "relu_network", 12, level)]
    assert verdict_of("looped and ordinary are about equal", {"r8_classes": models}).status == status


def decoded(iteration, r2):
    """Networks whose R² is given at each iteration."""
    spread = np.ones((2, len(r2), 300))
    squared = np.random.default_rng(0).uniform(0.9, 1.1, size=(2, 2, len(r2), 300)) * (1 - np.array(r2))[:, None]
    return xr.Dataset(
        {
            "network_squared": (("network", "of", "iteration", "example"), squared),
            "network_spread": (("of", "iteration", "example"), spread),
        },
        coords={"network": ["pooled", "tokens"], "of": ["XᵀY", "w, least squares"], "model": "m"},
        attrs={"iteration": iteration},
    )


@pytest.mark.parametrize(
    ("claim", "iteration", "r2", "status"),
    [
        ("more decodable with loops", "loop", [0.2, 0.5, 0.8], "supported"),
        ("more decodable with loops", "loop", [0.8, 0.5, 0.2], "contradicted"),
        ("more decodable with loops", "layer", [0.2, 0.5, 0.8], "undecided"),
        ("in the middle layers", "layer", [0.2, 0.8, 0.3], "supported"),
        ("in the middle layers", "layer", [0.2, 0.5, 0.8], "mixed"),
        ("in the middle layers", "layer", [0.8, 0.5, 0.9], "contradicted"),
        ("in the middle layers", "loop", [0.2, 0.8, 0.3], "undecided"),
    ],
)
def test_decodability_is_decided_by_the_difference_of_r2(claim, iteration, r2, status):
    assert verdict_of(claim, {"r8_decode": [decoded(iteration, r2)]}).status == status


def test_the_best_middle_layer_is_chosen_on_other_prompts_than_it_is_judged_by():
    """One layer is right on every other prompt alone, and is chosen by these; on the rest it is worse than the ends."""
    data = decoded("layer", [0.5, 0.5, 0.6, 0.5])
    squared = data.network_squared.copy()
    squared[..., 1, ::2], squared[..., 1, 1::2] = 0.1, 0.9
    findings = verdict_of("in the middle layers", {"r8_decode": [data.assign(network_squared=squared)]}).findings
    assert len(findings) == 8
    assert [one.estimate for one in findings] == pytest.approx([-0.4] * 8, abs=0.02)


@seeds
def folded(loops, left_out, accuracy, draw, seed):
    """A model on two tables, one of them left out of its training."""
    right = np.random.default_rng(10 * draw + seed).uniform(size=(2, 4000, 3)) < accuracy
    cfg = {"task": {"name": "tables"}, "model": {"n_loops": loops}}
    return xr.Dataset(
        {"right": (("table", "example", "point"), right), "trained_on": ("table", [left_out != "a", left_out != "b"])},
        coords={"table": ["a", "b"], "point": [0, 1, 2]},
        attrs=stamped(cfg),
    )


@pytest.mark.parametrize(
    ("looped", "left_out", "status"),
    [(0.95, "ab", "supported"), (0.8, "ab", "contradicted"), (0.894, "ab", "undecided"), (0.95, "", "undecided")],
)
def test_left_out_tables_are_decided_by_the_difference_of_accuracy(looped, left_out, status):
    models = [folded(1, one, 0.9, i) for i, one in enumerate("ab")]
    models += [folded(20, one, looped, 2 + i) for i, one in enumerate(left_out)]
    assert verdict_of("on a table of real data", {"r8_folds": models}).status == status


def test_a_question_that_claims_read_cannot_be_renamed_unnoticed():
    names = set(saved_questions())
    check_questions(names)
    for name in QUESTIONS:
        assert name in names
        with pytest.raises(LoopprobeError, match=repr(name)):
            check_questions(names - {name})


def test_first_and_last_are_compared_on_the_seeds_that_have_both():
    last, first = (mask_data(lambda n, loop, grow=grow: (32 - n) * grow) for grow in (1.0, 1.1))
    whole = verdict_of("matter about equally", {"r4_last_n": [last[:2]], "r5_first_n": [first[:2]]})
    uneven = verdict_of("matter about equally", {"r4_last_n": [last[:2]], "r5_first_n": [first]})
    assert uneven.findings == whole.findings
    assert {finding.seeds for finding in uneven.findings} == {(2,)}
    assert all(np.isfinite([one.estimate, one.low, one.high]).all() for one in uneven.findings)
    assert uneven.findings[0].estimate == pytest.approx(1 / 1.1)
    none = verdict_of("matter about equally", {"r4_last_n": [last[:1]], "r5_first_n": [first[1:]]})
    assert (none.status, none.findings) == ("undecided", ())


def test_a_section_is_judged_by_the_questions_that_its_claims_read():
    assert questions_of(["R5"]) == {"r4_last_n", "r5_first_n", "r4_last_n_study", "r5_first_n_study"}
    assert questions_of(["R9"]) == {"r9_converge"}
    assert questions_of({claim.section for claim in CLAIMS}) == questions_of([]) == set(QUESTIONS)
    check_questions(questions_of(["R5"]), ["R5"])
    with pytest.raises(LoopprobeError, match="'r4_last_n_study'"):
        check_questions(questions_of(["R5"]) - {"r4_last_n_study"}, ["R5"])
    with pytest.raises(LoopprobeError, match=r"'R99' has no claims: choose from R1, R2, .*R14"):
        questions_of(["R5", "R99"])
    judged = verdicts(dict.fromkeys(questions_of(["R5"]), ()), ["R5"])
    assert [one.claim for one in judged] == [claim.words for claim in CLAIMS if claim.section == "R5"]
    last, first = mask_data(lambda n, loop: 32 - n), mask_data(lambda n, loop: 32 - n)
    evidence = dict.fromkeys(questions_of(["R5"]), ()) | {"r4_last_n": last, "r5_first_n": first}
    assert {one.status for one in verdicts(evidence, ["R5"])} == {"supported"}
