"""The supervisor's judgement: pure functions from observations to actions, their table of reasons, the journal and the loop.

Front door: loop.py. No adapter is imported here; the outer world arrives through the protocols of vast/ports.py.
"""
