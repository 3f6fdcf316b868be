"""Records of rented runs on this machine: the run's directory, its status, the final report, machines to reap.

Front door: run_dir.py. The state of the host belongs to vast/shell and vast/host.
"""
