"""Training: packed batches, the objective, the loop, checkpoints, early stopping, FSDP.

Front door: train.py. What evaluates a finished model belongs to scoring.
"""
