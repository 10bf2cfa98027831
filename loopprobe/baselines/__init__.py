"""Algorithms that a trained model is compared with, each on every prefix of a prompt."""
