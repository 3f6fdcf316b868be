"""Configuration: stage and profile YAML, read strictly, checked against a typed schema, resolved into a Job.

Front door: load.py. Nothing here reads or writes a run directory.
"""
