"""General tools: atomic files, provenance, statistics, progress, devices, processes and Ray.

No module here depends on configurations, prompts or models.
"""
