"""Edges between components: what each tells each other directly, within a loop and from one loop to later ones.

All edges are estimated by gradients; the largest, and some at random, are computed exactly too, which tells how far the
estimates can be believed. Since all loops share their weights, edges are also grouped by their lag, the loops from the
sender to the receiver: does the loop do the same thing every time, and from when on? See ``probes.edge_runs``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import xarray as xr
from pydantic import NonNegativeInt, PositiveInt

from loopprobe.config.budget import require
from loopprobe.config.selection import Choice, resolve
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.selection import require_activations
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.edge_runs import (
    READ,
    READ_OUT,
    WRITTEN,
    Edge,
    EdgeRuns,
    memory_of,
    receiver_name,
    receivers_of,
    sender_name,
    senders_of,
)
from loopprobe.probes.measures import Function, Measure, find_measure
from loopprobe.probes.patch import with_corrupted
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import bootstrap_ratio, correlation, ranks, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

AT_ONCE = 16  # prompts; their caches of all loops are held together
ORDER = ("from_loop", "sender", "to_loop", "receiver")


@configuration
class EdgesConfig:
    """Which edges, and how they are told.

    Attributes:
        loops: iterations; the answer is read after the last. None: as many as trained.
        from_loops: the loops of the senders, from 1, see ``config.selection``. None: all.
        steps: prompts between the corrupted and the clean ones at which gradients are taken (integrated gradients);
            1: at the clean ones alone.
        exact: how many of the largest edges, and how many at random, are also computed exactly.
        corruption: how prompts are corrupted, see the probe patch. None: the usual way.
        measure: what is measured of the answers, see ``probes.measures``; it must be differentiable.
        seed: of the edges at random.
    """

    loops: PositiveInt | None = None
    from_loops: Choice | None = None
    steps: PositiveInt = 5
    exact: NonNegativeInt = 24
    corruption: str | None = None
    measure: str = "answer"
    seed: NonNegativeInt = 0


def run(
    subject: Subject,
    prompts: PromptBatch,
    config: EdgesConfig,
    progress: Progress = lambda steps: steps,
    *,
    corrupted: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> xr.Dataset:
    """Estimate every edge, and compute some exactly.

    Args:
        subject, prompts, config: the model, the clean prompts, and the options.
        progress: wraps batches and loops.
        corrupted: the corrupted prompts; None: the clean ones are corrupted as the options say.
        measure: what is measured, where it is no name, see ``probes.measures.find_measure``.

    Returns:
        A dataset with dims ``from_loop`` and ``to_loop`` (from 1), ``sender``, ``receiver`` and ``example``; what
        cannot be, such as an edge to an earlier loop, is missing, and the read-out has edges in the last loop alone,
        which are exact:

        * ``moved [from_loop, sender, to_loop, receiver, example]``: the estimated direct effect, the change of the
          measure when the receiver is told that the sender is corrupted
        * ``share`` with ``_low`` and ``_high [from_loop, sender, to_loop, receiver]``: Σ moved · total / Σ total² over
          prompts, total being the corrupted minus the clean measure; 95 % bootstrap intervals
        * ``exact`` with its ends, the same of exact direct effects, where they were computed; ``chosen`` says why:
          ``largest``, ``random``, ``read-out`` or nothing
        * ``by_lag [lag, sender, receiver]``: the sum of ``share`` over all edges from loop t to loop t + lag, and
          ``similarity [lag, from_loop]``: the cosine of the edges of one lag that leave a loop, and of those that leave
          the last loop that has some
        * ``clean``, ``total [example]``

        ``attrs`` hold ``correlation`` and ``rank_correlation`` of estimates and exact effects over the edges at random,
        missing where there are too few, and the same over the largest as ``correlation_largest``.

    Raises:
        LoopprobeError: options, prompts, corrupted prompts or the measure do not fit.
    """
    check(subject, config, prompts, corrupted=corrupted, measure=measure)
    prompts = prompts.to(subject.device)
    prompts, other, words = with_corrupted(subject, prompts, config.corruption, corrupted)
    chosen = find_measure(config.measure if measure is None else measure, prompts)
    n_loops = config.loops or subject.loops_of(prompts)
    from_loops = resolve(config.from_loops, n_loops, "loop", first=1) or list(range(n_loops))
    senders, receivers = senders_of(subject.model), receivers_of(subject.model)
    shape = (len(from_loops), len(senders), n_loops, len(receivers) + 1, prompts.n_prompts)
    moved = np.full(shape, np.nan, np.float32)
    clean, total, exact, parts = [], [], [], []
    for start in range(0, prompts.n_prompts, AT_ONCE):
        here = slice(start, start + AT_ONCE)
        runs = EdgeRuns(subject.model, prompts[here], other[here], n_loops, chosen, config.steps)
        for i, loop in enumerate(progress(from_loops)):
            moves, answers = runs.estimated(loop, senders)
            moved[i, :, loop:, :-1, here] = to_numpy(moves)
            moved[i, :, -1, -1, here] = to_numpy(answers)
        clean.append(to_numpy(runs.before))
        total.append(to_numpy(runs.total))
        parts.append(runs)
    _drop_impossible(moved, senders, receivers, from_loops)
    totals = np.concatenate(total).astype(np.float64)
    share = bootstrap_ratio(moved * totals, totals**2)
    edges, why = _to_check(share[0], config)
    listed = [
        Edge(from_loops[i], senders[j], to, None if k == len(receivers) else receivers[k])
        for i, j, to, k in (map(int, edge) for edge in edges)
    ]
    if listed:
        exact += [to_numpy(runs.exact(listed)) for runs in progress(parts)]
    coords: dict[str, Any] = {
        "from_loop": [loop + 1 for loop in from_loops],
        "sender": [sender_name(one) for one in senders],
        "to_loop": np.arange(1, n_loops + 1),
        "receiver": [*map(receiver_name, receivers), READ_OUT],
        "model": subject.label,
    }
    data = xr.Dataset(with_ends("share", ORDER, share), coords=coords)
    data["moved"] = (*ORDER, "example"), moved
    data["clean"], data["total"] = ("example", np.concatenate(clean)), ("example", totals)
    data = data.merge(_exact(share, edges, why, exact, totals)).merge(lags(data.share))
    data.attrs |= _agreement(data)
    for name in ("moved", "clean", "total"):
        data[name].attrs["units"] = chosen.unit
    data.attrs |= {"measure": chosen.name, "measure_unit": chosen.unit, "measure_source": chosen.source}
    data.attrs["corruption"] = words
    config = dataclasses.replace(config, measure=chosen.option)
    return stamp(data, "edges", subject, prompts, config)


def check(
    subject: Subject,
    config: EdgesConfig,
    prompts: PromptBatch,
    *,
    corrupted: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> None:
    """Raise LoopprobeError where the options do not fit the model, the prompts or the memory, before anything runs."""
    model: Any = subject.model
    require_activations(model, (*WRITTEN, *READ), "an edge", ())
    n_loops = config.loops or subject.loops_of(prompts)
    resolve(config.from_loops, n_loops, "loop", first=1)
    find_measure(config.measure if measure is None else measure, prompts)
    kinds = prompts.corruptions
    if corrupted is None and (not kinds or config.corruption not in (None, *kinds)):
        raise LoopprobeError(
            f"corruption ({config.corruption}) must be {' or '.join(kinds) or 'given as corrupted='}: choose one"
        )
    batches = -(-prompts.n_prompts // AT_ONCE)
    needed = batches * memory_of(model, prompts[:AT_ONCE], n_loops)
    edges = n_loops**2 * len(senders_of(model)) * (len(receivers_of(model)) + 1)
    needed += 4 * 3 * edges * prompts.n_prompts
    require(needed, f"edges of {subject.label} over {n_loops} loops", "lower --prompts or --loops", subject.device)


def _drop_impossible(moved: np.ndarray, senders: list[Any], receivers: list[Any], from_loops: list[int]) -> None:
    """Mark as missing the edges within a loop that would go back: to the same layer's attention, or an earlier part."""
    for i, loop in enumerate(from_loops):
        for j, sender in enumerate(senders):
            for k, receiver in enumerate(receivers):
                if sender is None:
                    continue
                after = receiver.layer > sender.layer or (
                    receiver.layer == sender.layer and receiver.site == "mlp_out" and sender.site == "attn_z"
                )
                if not after:
                    moved[i, j, loop, k] = np.nan


def _to_check(share: np.ndarray, config: EdgesConfig) -> tuple[np.ndarray, list[str]]:
    """The edges that are computed exactly, [edge, axis], and why: the largest, and others at random."""
    possible = np.argwhere(~np.isnan(share) & (np.arange(share.shape[-1]) < share.shape[-1] - 1))
    sizes = np.abs(share[tuple(possible.T)])
    order = np.argsort(-sizes, kind="stable")
    largest = order[: config.exact]
    rest = np.random.default_rng(config.seed).permutation(order[config.exact :])[: config.exact]
    chosen = possible[np.concatenate([largest, rest]).astype(int)]
    return chosen, ["largest"] * len(largest) + ["random"] * len(rest)


def _exact(
    share: tuple[np.ndarray, ...], edges: np.ndarray, why: list[str], exact: list[np.ndarray], totals: np.ndarray
) -> xr.Dataset:
    """Exact effects at their edges; those of the read-out are exact as they are."""
    values = [np.full_like(share[0], np.nan) for _ in range(3)]
    reasons = np.full(share[0].shape, "", "U8")
    for one, of_share in zip(values, share, strict=True):
        one[..., -1, -1] = of_share[..., -1, -1]
    reasons[..., -1, -1] = READ_OUT
    if len(edges):
        found = bootstrap_ratio(np.concatenate(exact, -1) * totals, totals**2)
        for one, ends in zip(values, found, strict=True):
            one[tuple(edges.T)] = ends
        reasons[tuple(edges.T)] = why
    return xr.Dataset(with_ends("exact", ORDER, (values[0], values[1], values[2])) | {"chosen": (ORDER, reasons)})


def lags(share: xr.DataArray) -> xr.Dataset:
    """Group edges by the loops from sender to receiver, the read-out aside; ``run`` says what it returns."""
    share = share.isel(receiver=slice(0, -1))
    n_from, n_to = share.sizes["from_loop"], share.sizes["to_loop"]
    sums = np.zeros((n_to, share.sizes["sender"], share.sizes["receiver"]))
    similarity = np.full((n_to, n_from), np.nan)
    for lag in range(n_to):
        rows = {
            i: np.nan_to_num(share.values[i, :, loop - 1 + lag])
            for i, loop in enumerate(share.from_loop.values)
            if loop - 1 + lag < n_to
        }
        if not rows:
            continue
        sums[lag] = sum(rows.values())
        last = rows[max(rows)].ravel()
        for i, row in rows.items():
            size = np.linalg.norm(row) * np.linalg.norm(last)
            similarity[lag, i] = row.ravel() @ last / size if size else np.nan
    return xr.Dataset(
        {"by_lag": (("lag", "sender", "lag_receiver"), sums), "similarity": (("lag", "from_loop"), similarity)},
        coords={"lag": np.arange(n_to), "lag_receiver": share.receiver.values},
    )


def _agreement(data: xr.Dataset) -> dict[str, float]:
    """Correlations of estimates and exact effects."""
    made = {}
    for why, end in (("random", ""), ("largest", "_largest")):
        at = data.chosen.values == why
        estimate, exact = data.share.values[at], data.exact.values[at]
        enough = len(exact) > 2
        made[f"correlation{end}"] = correlation(estimate, exact) if enough else float("nan")
        made[f"rank_correlation{end}"] = correlation(ranks(estimate), ranks(exact)) if enough else float("nan")
    return made


PROBE = Probe(
    "edges",
    EdgesConfig,
    run,
    check,
    Shown(
        "edges:edges_figures",
        "edges:edges_table",
        quantities=(
            Quantity(
                "share",
                "moved",
                "ratio",
                ("total",),
                along=("to_loop",),
                across="from_loop",
                unit="share of the answer",
            ),
        ),
    ),
    needs=frozenset({"map"}),
    given=("corrupted", "measure"),
)
