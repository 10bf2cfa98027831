"""Tools that know nothing of models: atomic files, provenance, statistics, progress, devices, processes, Ray.

Nothing here knows what a configuration, a prompt or a loop is.
"""
