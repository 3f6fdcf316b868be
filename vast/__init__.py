"""Runs a stage on a rented machine and supervises it; needs no torch."""
