"""Pages that can be sent by themselves: their templates, figures and tables, for all that writes HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.io
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich.table import Table

from loopprobe.show.tables.plain import lines_of

PLOT = {"responsive": True, "displaylogo": False}


def render(name: str, context: Mapping[str, Any], room: str = "show") -> str:
    """Fill a template.

    Args:
        name: its file; what it includes may be one of ``show``, such as page.css, theme.js and table.html.
        context: what it names; ``script()`` is plotly's own script.
        room: the room in whose folder ``templates`` it lies.
    """
    loaders = [jinja2.PackageLoader(f"loopprobe.{one}") for one in dict.fromkeys((room, "show"))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.globals["plot_config"] = PLOT
    environment.globals["script"] = lambda: Markup(get_plotlyjs())
    return environment.get_template(name).render(context).strip() + "\n"


def figure_html(figure: go.Figure, name: str) -> Markup:
    """Return a figure as a part of a page that holds plotly's script."""
    return Markup(
        plotly.io.to_html(figure, div_id=name, full_html=False, include_plotlyjs=False, auto_play=False, config=PLOT)
    )


def table_parts(table: Table) -> dict[str, Any]:
    """Return a table as the macro ``rows`` of table.html takes it."""
    return {"title": table.title or "", "lines": lines_of(table), "caption": table.caption or ""}
