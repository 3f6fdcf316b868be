"""One supervisor at work in a process: signals, clock, terminal view, alerts, notifications.

Front door: session.py. What to do with a machine is decided in vast/supervisor.
"""
