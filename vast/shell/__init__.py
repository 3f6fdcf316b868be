"""The way to a rented machine, and what of its answers is believed."""
