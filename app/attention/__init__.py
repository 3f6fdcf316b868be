"""Attention masks: who may attend to whom, in every form that an attention backend takes, and the check that it really holds.

Front door: mask.py, the one definition of the patterns. Nothing of models, data or training belongs here.
"""
