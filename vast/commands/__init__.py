"""The commands of `python -m vast`, and the one place where the real ports are made.

Front door: up.py. No judgement about machines belongs here.
"""
