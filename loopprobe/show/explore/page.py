"""The explorer's page from datasets of the explore probe, and a page of any other probe's datasets."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.page import figure_html, render, table_parts
from loopprobe.show.present import figures, findings, tables_for

ARRAYS = ("error", "median", "median_low", "median_high", "answer_error", "to_final", "prediction", "top_probability",
          "path", "explained", "pattern")  # fmt: skip
SHARES = ("pattern",)  # numbers from 0 to 1, of which there are many
MOST_PATTERNS = 2**23  # numbers of attention that a page holds: 22 MB of text


def view_of(data: xr.Dataset) -> dict[str, Any]:
    """Return a dataset of the explore probe as the page's script reads it: plain data that JSON can hold.

    Attention of more than ``MOST_PATTERNS`` numbers is left out.
    """
    told = read_stamp(data)
    names = [name for name in ARRAYS if name in data and (name != "pattern" or data[name].size <= MOST_PATTERNS)]
    left = "" if "pattern" in names or "pattern" not in data else " Its attention is too large for a page: lower loops."
    words = {"topAnswer": data.top_answer.values.tolist()} if "top_answer" in data else {}
    return words | {
        "arrays": {name: packed(data[name].values, share=name in SHARES) for name in names},
        "runs": [str(name) for name in data.run.values],
        "loops": data.loop.values.tolist(),
        "tokens": data.token.values.tolist(),
        "right": data.right.values.tolist(),
        "readAt": data.read_at.values.tolist(),
        "query": int(data.attrs["query_token"]),
        "prompt": int(told.options["prompt"]),
        "nPrompts": data.sizes["example"],
        "trained": int(data.attrs["trained_loops"]),
        "failure": float(data.attrs["failure_level"]),
        "unit": told.unit,
        "queryUnit": told.query_unit,
        "stepWords": "KL divergence, nats" if "top_answer" in data else told.unit.replace("error", "difference"),
        "told": findings([data])[0] + left,
    }


def packed(values: np.ndarray, *, share: bool = False) -> dict[str, Any]:
    """Return an array as base64 of its numbers, in float32, or where they are shares in 65,535ths."""
    kind, numbers = ("u2", np.rint(values.clip(0, 1) * 65535)) if share else ("f4", values)
    content = base64.b64encode(np.ascontiguousarray(numbers, f"<{kind}").tobytes()).decode()
    return {"type": kind, "shape": list(values.shape), "data": content}


def effects_of(data: xr.Dataset) -> dict[str, Any]:
    """Return the effects in a dataset of the patch probe on the state, as the page's script reads them."""
    values = data.z if "z" in data else data.z_attribution
    return {
        "values": packed(values.transpose("loop", "position").values),
        "loops": data.loop.values.tolist(),
        "positions": data.position.values.tolist(),
        "told": findings([data])[0],
    }


def explorer_page(title: str, about: str, views: Mapping[int, dict[str, Any]], facts: Mapping[str, Any]) -> str:
    """Return the page of linked views.

    Args:
        title, about: what is explored, in a few words and in a sentence.
        views: what ``view_of`` returns, by the number of the prompt.
        facts: what the script needs to know besides, see ``Exploration.facts``.
    """
    boot = {"views": views, "shown": list(views), **facts}
    text = json.dumps(boot, allow_nan=False).replace("<", "\\u003c")  # no end of a script in it
    return render("explore.html", {"title": title, "about": about, "boot": Markup(text)})


def datasets_page(datasets: Sequence[xr.Dataset]) -> str:
    """Return a page with all sentences, figures and tables of datasets of one probe.

    Raises:
        LoopprobeError: no probe made the datasets.
    """
    drawn = figures(datasets)
    stamps = [read_stamp(data) for data in datasets]
    labels = ", ".join(dict.fromkeys(str(data.model.item()) for data in datasets))
    made = stamps[0].provenance
    context = {
        "title": f"{stamps[0].probe.replace('_', ' ')}: {labels}",
        "findings": findings(datasets),
        "figures": [figure_html(figure, name) for name, figure in drawn.items()],
        "tables": [table_parts(table) for table in tables_for(datasets)],
        "options": json.dumps(stamps[0].options),
        "prompts": json.dumps(stamps[0].prompts),
        "made": ", ".join(f"{key} {value}" for key, value in made.items()),
    }
    return render("datasets.html", context)
