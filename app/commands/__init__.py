"""The commands of `python -m app`: options read, mistakes refused, the work handed to the rooms below.

Front door: run.py. No logic of training, scoring or reports belongs here.
"""
