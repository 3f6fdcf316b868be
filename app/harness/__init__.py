"""The adapter to lm-evaluation-harness: any of its tasks under any mask.

Front door: model.py. Only this room imports lm_eval, which is an optional extra.
"""
