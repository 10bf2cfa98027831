"""The tables and the diagram of ``loopprobe inspect``."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from loopprobe.model.in_hand import megabytes
from loopprobe.show.tables.plain import titled
from loopprobe.store.inspection import Inspection


def inspection_tables(found: Inspection) -> list[Table]:
    """Tabulate the parts of a model, its hook points, and what it can do."""
    sizes = found.sizes
    parts = titled(f"{found.label}: {found.kind}, {found.n_parameters:,} weights, {found.precision}")
    parts.caption = (
        f"b = {sizes.n_loops} loops of {sizes.n_layers} layer{'s' * (sizes.n_layers != 1)}, {sizes.n_heads} heads, a "
        f"state of {sizes.d_model:,}; a "
        f"loop begins with {escape(found.injection)}"
    )
    parts.add_column("part")
    parts.add_column("where it stands", overflow="fold")
    for role, what in found.parts:
        parts.add_row(role, escape(what))
    points = titled("hook points, t the loop and l the layer")
    kept = ", ".join(f"{name} {megabytes(n)}" for name, n in found.bytes_of_loop.items())
    points.caption = f"shapes of one prompt of {found.n_tokens} tokens; keeping one loop of it takes: {kept}"
    for column in ("name", "axes", "shape"):
        points.add_column(column, justify="right" if column == "shape" else "left")
    for row in found.points:
        points.add_row(*row)
    able = titled("what probes can use")
    able.add_column("")
    able.add_column("")
    for words, has in found.supports:
        able.add_row("yes" if has else "–", words)
    return [parts, points, able]


def diagram(found: Inspection) -> str:
    """Draw the loop in characters."""
    roles = dict(found.parts)
    before, behind = "prelude", "coda, head" if "coda" in roles else "head"
    core = f"core: {found.sizes.n_layers} layer{'s' * (found.sizes.n_layers != 1)}"
    start = roles.get("start", "?")
    inject = found.injection.split(" through ")[0]
    line = f"inputs ─▶ {before} ─▶ e ─▶ {inject} ─▶ {core} ─▶ z ─▶ {behind} ─▶ answers"
    left, right = line.index(inject), line.index(" z ─▶ " + behind) + 1
    middle = left + len(inject) // 2
    times = f" × {found.sizes.n_loops} "
    back = "╰" + times.center(right - middle - 1, "─") + "╯"
    return "\n".join([line, " " * middle + "▲" + " " * (right - middle - 1) + "│", " " * middle + back,
                      " " * middle + f"z starts as: {start}"])  # fmt: skip
