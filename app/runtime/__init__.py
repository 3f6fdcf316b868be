"""The process around a stage: ranks and their launcher, signals, heartbeat, progress, how a run ends.

Front door: ranks.py. Imports no torch while it is loaded; nothing here knows a model or a mask.
"""
