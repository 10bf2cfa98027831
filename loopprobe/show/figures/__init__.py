"""Datasets to plotly figures; no input or output but that of ``style.write_html`` and ``style.write_png``."""
