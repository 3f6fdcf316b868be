"""Run directories: the one writer of results, their files, and atomic writes.

Front door: rundir.py. What the results mean belongs to app/report and vast/records.
"""
