"""Before a machine is rented: the plan, the checks that cost nothing, the image's registry, the start script of the machine.

Front door: plan.py. Nothing here watches a machine that runs.
"""
