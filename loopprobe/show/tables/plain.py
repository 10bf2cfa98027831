"""A table by itself: its style, and how it is printed, written in Markdown, and read line by line."""

from rich import box
from rich.console import Console
from rich.table import Table


def show_table(table: Table) -> None:
    """Print a table, at its full width where the output is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, Console(width=1000).measure(table).maximum))
    console.print(table)


def markdown(table: Table) -> str:
    """Return a table as Markdown, folded under its title."""
    head, *rows = lines_of(table)
    lines = (f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
    return "\n".join([f"<details><summary>{table.title} ({len(rows)})</summary>", "", *lines, "", "</details>"])


def lines_of(table: Table) -> list[list[str]]:
    """Return the text of a table line by line, its header first."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    return [list(line) for line in zip(*columns, strict=True)]


def titled(title: str) -> Table:
    """Return an empty table in the common style."""
    return Table(title=title, box=box.SIMPLE, title_justify="left", caption_justify="left")
