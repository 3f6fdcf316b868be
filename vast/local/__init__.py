"""The container engine of this machine in place of the marketplace: the same supervisor, a container as its machine.

Front door: local_cloud.py. The only room that imports the docker SDK, which is an optional extra.
"""
