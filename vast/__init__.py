"""What runs a stage on a rented machine and looks after it. Runs where torch is not installed."""
