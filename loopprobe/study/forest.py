"""Forest plots: the findings of a claim as points with their intervals, beside the range that the claim states."""

from __future__ import annotations

import itertools
import textwrap

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from loopprobe.show.figures.style import finish
from loopprobe.study.decisions import STATUSES, Status
from loopprobe.study.verdicts import Finding, Verdict

LOOKS: dict[Status, tuple[str, str]] = {  # colour-blind readers tell the colours apart, and the symbols
    "supported": ("#009e73", "circle"),
    "contradicted": ("#d55e00", "x"),
    "undecided": ("#7f7f7f", "circle-open"),
}
OWN, TOGETHER = 4.0, 1.2  # pixels of the lines of both intervals
OF_MEAN = "diamond"  # the symbol of a mean over findings, of any status
ROW, BETWEEN = 24, 80  # pixels of a finding, and between panels
WORDS = {
    "ratio": "ratio of median errors, or of steps", "difference": "difference", "share": "share",
    "correlation": "rank correlation",
}  # fmt: skip


def forest(verdict: Verdict) -> go.Figure | None:
    """Draw the findings of a claim, one row each and one panel for each kind of number; None where there are none.

    A thick line is a finding's 95 % interval, a thin one its interval that holds together with the others. The shaded
    range is what the claim states. A finding without an interval is a point alone. Means over findings come first.
    """
    drawn = [finding for finding in (*verdict.means, *verdict.findings) if np.isfinite(finding.estimate)]
    scales = list(dict.fromkeys(finding.scale for finding in drawn))
    if not drawn:
        return None
    counts = [sum(finding.scale == scale for finding in drawn) for scale in scales]
    inner = ROW * len(drawn) + BETWEEN * len(scales)
    figure = make_subplots(
        rows=len(scales), cols=1, row_heights=[count + 1 for count in counts], vertical_spacing=BETWEEN / inner
    )
    shown: set[str] = set()
    for row, scale in enumerate(scales, 1):
        here = [finding for finding in drawn if finding.scale == scale]
        for status, means in itertools.product(STATUSES, (True, False)):
            members = [finding for finding in here if finding.status == status and (finding in verdict.means) == means]
            if members:
                name = f"mean: {status}" if means else status
                _points(figure, members, status, name, row, name not in shown)
                shown.add(name)
        _claimed(figure, here, row)
        names = [_name(finding) for finding in here]
        figure.update_yaxes(categoryorder="array", categoryarray=names[::-1], automargin=True, row=row, col=1)
        axis = {"type": "log"} if scale == "ratio" else {}
        figure.update_xaxes(title=WORDS[scale], **axis, row=row, col=1)
    finish(figure, verdict.claim)
    figure.update_layout(hovermode="closest", height=inner + 170)
    return figure


def _points(figure: go.Figure, findings: list[Finding], status: Status, legend: str, row: int, in_legend: bool) -> None:
    colour, symbol = LOOKS[status]
    is_mean = legend != status
    marker = {"color": colour, "symbol": OF_MEAN if is_mean else symbol, "size": 13 if is_mean else 9}
    x = np.array([finding.estimate for finding in findings])
    for ends, thickness in ((("low_together", "high_together"), TOGETHER), (("low", "high"), OWN)):
        low, high = (np.array([getattr(finding, end) for finding in findings]) for end in ends)
        is_own = thickness == OWN
        figure.add_scatter(
            x=x, y=[_name(finding) for finding in findings], mode="markers", name=legend, legendgroup=legend,
            showlegend=in_legend and is_own, marker=marker,
            error_x={"type": "data", "symmetric": False, "array": np.nan_to_num(high - x),
                     "arrayminus": np.nan_to_num(x - low), "color": colour, "thickness": thickness, "width": 0},
            hoverinfo=None if is_own else "skip", row=row, col=1,
            hovertemplate="%{y}: %{x:.4g}<extra></extra>" if is_own else None,
        )  # fmt: skip


def _claimed(figure: go.Figure, findings: list[Finding], row: int) -> None:
    """Shade the range of every rule, where the axis has it: an end that is missing is that of the axis."""
    for least, most in {(finding.least, finding.most) for finding in findings}:
        values = [value for one in findings for value in (one.estimate, one.low_together, one.high_together)]
        values += [least, most]
        known = [v for v in values if np.isfinite(v) and (v > 0 or findings[0].scale != "ratio")]
        low, high = min(known), max(known)
        ends = (least if np.isfinite(least) else low), (most if np.isfinite(most) else high)
        figure.add_vrect(x0=ends[0], x1=ends[1], fillcolor="#0072b2", opacity=0.08, line_width=0, row=row, col=1)
        for end in (least, most):
            if np.isfinite(end):
                figure.add_vline(x=end, line={"dash": "dot", "color": "#0072b2", "width": 1}, row=row, col=1)


def _name(finding: Finding) -> str:
    return "<br>".join(textwrap.wrap(finding.what, 80))
