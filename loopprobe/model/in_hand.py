"""What models and caches show of themselves in a notebook.

Pictures and pages are of ``show``, which stands above this room: they are named here, as the declarations of probes
name their figures, and imported when somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import import_module
from typing import Any

from torch import Tensor

from loopprobe.config.selection import ranges
from loopprobe.model.hook_points import dims, short_name, split_name


class ShownModel:
    """A model that shows itself in a notebook, and its runs."""

    def explore(self, *prompts: Any, loops: int | None = None, shown: int = 3) -> Any:
        """Explore runs of the model on one page of linked views, see ``loopprobe.explore``.

        Args:
            prompts: prompts, such as ``checkpoint.held_out(64)``; or the inputs of a call of the model.
            loops: iterations; None: as many as the model was trained with.
            shown: prompts whose runs a saved page holds.

        Returns:
            What shows itself in a notebook; ``save(path)`` writes it, ``show()`` opens it, and ``serve()`` opens it
            with live runs.

        Raises:
            LoopprobeError: the prompts do not fit the model.
        """
        explore = import_module("loopprobe.show.explore.session").explore
        return explore(self, prompts[0] if len(prompts) == 1 else prompts or None, loops=loops, shown=shown)

    def _repr_html_(self) -> str:
        """Draw the loop as a small diagram, with the names of the hook points."""
        drawn: str = import_module("loopprobe.show.inspected").model_html(self)
        return drawn


class ShownCache:
    """A cache that says what it keeps, never its numbers."""

    def __repr__(self: Any) -> str:
        """Tell loops, names and memory in a line."""
        size = sum(_bytes(stack) for stack in self._stacks.values()) / 1e6
        return f"LoopCache(loops {ranges(self.loops)} of {self.n_loops}, {len(self._loops)} names, {size:.1f} MB)"

    def _repr_html_(self: Any) -> str:
        """Tell loops, names, shapes and memory in a table, for a notebook."""
        kept = ((local, self._loops[local], stack) for local, stack in self._stacks.items())
        return cache_html(f"LoopCache of loops {ranges(self.loops)} of {self.n_loops}", kept)


def cache_html(title: str, stacks: Iterable[tuple[str, list[int | None] | None, Tensor | list[Tensor]]]) -> str:
    """Return a table of the activations of a cache: names, loops, axes, shapes and memory.

    Args:
        title: what the cache is.
        stacks: of every activation its name, its loops (None where it has no axis of loops, [None] where it is passed
            once), and its values, of loops stacked.
    """
    rows, total = [], 0
    for local, loops, stack in stacks:
        size = _bytes(stack)
        one: Any = stack if loops is None else stack[0]
        total += size
        axes = dims(local)[-one.ndim :] if one.ndim <= len(dims(local)) else dims(local)
        shape = " × ".join(f"{n:,}" for n in one.shape)
        told = "–" if loops in (None, [None]) else ranges([loop for loop in loops or () if loop is not None])
        name = short_name(local) + ("" if split_name(local)[1] is None else f", layer {split_name(local)[1]}")
        rows.append((name, local, told, ", ".join(axes), shape, megabytes(size)))
    head = "".join(f"<th>{word}</th>" for word in ("activation", "hook point", "loops", "axes", "shape", "memory"))
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<p><b>{escape(title)}</b>, {megabytes(total)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _bytes(stack: Tensor | list[Tensor]) -> int:
    return stack.nbytes if isinstance(stack, Tensor) else sum(one.nbytes for one in stack)


def megabytes(n_bytes: int) -> str:
    """Return a size in memory in words."""
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:,.1f} kB"
