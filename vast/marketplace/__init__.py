"""The marketplace: offers, instances and the account over an HTTP API, behind the protocols of vast/ports.py.

Front door: vast_ai.py. One module a provider; no decision about a machine belongs here.
"""
