"""Functions that draw datasets as plotly figures; only those of ``style`` write files."""
