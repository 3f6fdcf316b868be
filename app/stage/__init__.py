"""A stage from start to end: the capacity check, the work itself, and the run directory that records it.

Front door: run.py. How to train and score is the subject of app/training and app/scoring.
"""
