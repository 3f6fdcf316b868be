"""Statistics of scored items: bootstrap intervals, McNemar's exact test, Holm's correction, power. Pure functions.

Front door: bootstrap.py. No file is read here and no other room of `app` is imported.
"""
