"""The study of looped transformers: its saved questions and answers, its claims with verdicts, and its report.

Everything here is asked through probes and shown through ``show``.
"""
