"""Models and tokenizers: loading, mixed precision, the output layer, compiled layers.

Front door: load.py. What is scored or trained with a model belongs to scoring and training.
"""
