"""What people see of a dataset: figures, tables, pages, and the explorer, whose server asks probes for new datasets.

Nothing is measured here: every number stands in a dataset.
"""
