"""The code that runs on a rented machine: standard library only."""
