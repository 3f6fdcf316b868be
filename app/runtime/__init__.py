"""The process around a stage: ranks and their launcher, signals, heartbeat, progress, how a run ends.

Front door: ranks.py. Loads without torch; nothing here knows a model or a mask.
"""
