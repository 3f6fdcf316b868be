"""A stage as a job of Slurm, SkyPilot, dstack or Kubernetes: the engine's own file, checked by the engine, then submitted.

Front door: __main__.py, `python -m jobs.submit`. No module here talks to an engine but client.py, and that by its own client.
"""
