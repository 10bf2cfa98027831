"""Predictors that models are compared with: known algorithms step by step, and baselines on every prefix of a prompt.

The comparison itself is made by probes.
"""
