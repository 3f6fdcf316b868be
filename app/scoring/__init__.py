"""Scoring and generation: log-likelihoods of continuations under a mask, accuracies by task, greedy decoding.

Front door: loglikelihood.py. Training belongs to its own room; tables and intervals belong to report and stats.
"""
