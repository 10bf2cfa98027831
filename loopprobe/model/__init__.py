"""The looped transformer, its hook points, its caches in memory and on disk, and edits and masks of its state.

Nothing here knows of checkpoints, of probes or of training.
"""
