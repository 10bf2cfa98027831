"""Predictors that are no looped model: known algorithms step by step, and baselines on every prefix of a prompt.

What a model is compared with stands here, not the comparison.
"""
