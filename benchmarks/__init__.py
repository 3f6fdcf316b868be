"""What is fast, measured against what it replaces: one run, one machine, the same weights and the same items."""

import app as app  # before torch: its threads wait as the product's do
