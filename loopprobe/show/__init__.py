"""What people see of a dataset: figures, tables, and which of them belong to which probe.

Nothing is measured here: every number stands in the dataset.
"""
