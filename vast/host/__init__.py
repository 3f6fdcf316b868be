"""What runs on a rented machine: standard library only."""
