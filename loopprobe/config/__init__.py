"""Frozen, validated configurations, the presets and TOML files that they come from, and the memory that they ask for.

No tensor is made here, and importing this room imports no torch.
"""
