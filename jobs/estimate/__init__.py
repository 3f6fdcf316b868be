"""The estimate: memory and hours that a job needs on a given GPU, and the change that would make it fit.

Front door: estimate.py. Imports no torch; measuring the GPU at hand belongs to app/stage/capacity.py.
"""
