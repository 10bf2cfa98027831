"""A model as a small diagram of its loop, for a notebook."""

from __future__ import annotations

from html import escape
from typing import Any

from loopprobe.show.explore.session import ModelAlone
from loopprobe.store.inspection import Inspection, inspect

HIGH, TOP, GAP, LETTER = 34, 14, 34, 7.4  # pixels of boxes, above them, between them, and of a letter
PEN = 'fill="none" stroke="currentColor"'


def model_html(model: Any) -> str:
    """Return the loop of a model as a picture, its sizes, and its hook points; the model does not run."""
    found = inspect(ModelAlone(model), run=False)
    sizes = found.sizes
    told = (
        f"b = {sizes.n_loops} loops of {_layers(found)}, {sizes.n_heads} heads, a state of {sizes.d_model:,}; "
        f"{found.n_parameters:,} weights, {found.precision}"
    )
    rows = [(f"<code>{escape(name)}</code>", axes, shape) for name, axes, shape in found.points]
    points = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<div><p><b>{escape(found.label)}</b>: {escape(told)}</p>{diagram_svg(found)}"
        f"<details><summary>{len(found.points)} hook points, t the loop and l the layer</summary><table><thead>"
        f"<tr><th>name</th><th>axes</th><th>shape of a prompt of {found.n_tokens} tokens</th></tr></thead>"
        f"<tbody>{points}</tbody></table></details></div>"
    )


def diagram_svg(found: Inspection) -> str:
    """Return the loop as an SVG picture in the colour of the text around it."""
    roles = dict(found.parts)
    inject = found.injection.split(" through ")[0]
    boxes = ["embed", inject, _layers(found), "coda, read out" if "coda" in roles else "read out"]
    between = {0: "e", 2: "z"}
    widths = [max(58.0, LETTER * len(word) + 18) for word in boxes]
    lefts = [70 + sum(widths[:i]) + i * GAP for i in range(len(boxes))]
    middle, bottom, low = TOP + HIGH / 2, TOP + HIGH, TOP + HIGH + 26
    parts = [_words(0, middle + 4, "inputs"), _arrow(44, middle, lefts[0])]
    for i, (word, left, width) in enumerate(zip(boxes, lefts, widths, strict=True)):
        end = left + width
        parts += [
            f'<rect x="{left}" y="{TOP}" width="{width}" height="{HIGH}" rx="6" {PEN}/>',
            _words(left + width / 2, middle + 4, word, "middle"),
            _arrow(end, middle, lefts[i + 1] if i + 1 < len(lefts) else end + GAP),
            _words(end + GAP / 2 - 2, middle - 5, between.get(i, ""), "middle"),
        ]
    start, back = lefts[1] + widths[1] / 2, lefts[2] + widths[2] + GAP / 2 - 4
    times = f"× {found.sizes.n_loops}, z starts as {roles.get('start', '?')}"
    right = lefts[-1] + widths[-1] + GAP
    parts += [
        f'<path d="M{back},{middle} V{low} H{start} V{bottom + 2}" {PEN} stroke-dasharray="4 3"/>',
        f'<path d="M{start - 4},{bottom + 9} L{start},{bottom + 1} L{start + 4},{bottom + 9}" {PEN}/>',
        _words((start + back) / 2, low + 15, times, "middle"),
        _words(right + 4, middle + 4, "answers"),
    ]
    return (
        f'<svg role="img" aria-label="the loop" viewBox="0 0 {right + 64} {low + 24}" '
        f'style="font: 12px system-ui, sans-serif; max-width: 100%; width: {right + 64}px">{"".join(parts)}</svg>'
    )


def _layers(found: Inspection) -> str:
    n = found.sizes.n_layers
    return f"{n} layer{'s' * (n != 1)}"


def _words(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'


def _arrow(start: float, y: float, end: float) -> str:
    return f'<path d="M{start},{y} H{end - 1} M{end - 8},{y - 4} L{end - 1},{y} L{end - 8},{y + 4}" {PEN}/>'
