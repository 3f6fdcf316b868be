"""The engine of this machine in place of the market: a container as a machine for the same supervisor.

Front door: local_cloud.py. The only room that imports the docker SDK, which is an optional extra.
"""
