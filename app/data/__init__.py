"""Data: evaluation items, prompts, finetuning examples and their tokens, without overlap between the two.

Front door: examples.py for training, tasks.py for evaluation. No model and no mask belongs here.
"""
