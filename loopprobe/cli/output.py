"""What verbs say: tables, sentences and files, printed for a person, or with --json as one object for a script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_recorded: ContextVar[dict[str, Any] | None] = ContextVar("recorded", default=None)  # of a verb that runs with --json


@contextmanager
def recording(as_json: bool) -> Iterator[None]:
    """Keep what is said within the block, and print it at its end as one JSON object, unless the block fails."""
    record: dict[str, Any] | None = {"tables": [], "sentences": [], "files": []} if as_json else None
    token = _recorded.set(record)
    try:
        yield
    finally:
        _recorded.reset(token)
    if record is not None:
        print(json.dumps(record, ensure_ascii=False, default=str))


def as_json() -> bool:
    """Whether what is said is kept for one JSON object at the end."""
    return _recorded.get() is not None


def say(tables: Iterable[Table] = (), sentences: Iterable[str] = (), files: Iterable[Path] = (), **facts: Any) -> None:
    """Print tables, sentences and the names of files, or keep them where a script is told.

    Args:
        tables: printed at their full width where the output is no terminal.
        sentences: lines of text.
        files: what was written.
        facts: plain data that only a script gets, by name.
    """
    record = _recorded.get()
    for table in tables:
        from loopprobe.show.tables.plain import lines_of, show_table  # imported here: much that is said has no table

        if record is None:
            show_table(table)
        else:
            columns, *rows = lines_of(table)
            record["tables"].append({"title": table.title, "columns": columns, "rows": rows, "note": table.caption})
    if record is None:
        for line in (*sentences, *files):
            print(line, flush=True)
        return
    record["sentences"] += sentences
    record["files"] += map(str, files)
    record.update(facts)
