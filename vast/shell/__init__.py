"""The way to a host over the system's ssh and rsync: commands, transfers checked by sha256, reports that are believed.

Front door: hostshell.py. What runs on the host itself belongs to vast/host.
"""
