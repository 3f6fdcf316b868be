"""What is fast, measured against what it replaces: one run, one machine, the same weights and the same items."""
