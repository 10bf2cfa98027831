"""One file a probe, each from a model and prompts to a dataset; the questions that run them, and the dataset on disk.

No figure, no table and no training.
"""
