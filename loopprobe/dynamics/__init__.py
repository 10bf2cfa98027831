"""The loop as a map that is iterated: its limits, its fixed points, its spectra and the paths of its states.

It works on any map of the protocol ``maps.Map`` and knows no probe.
"""
