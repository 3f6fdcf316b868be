"""What goes into a run and what comes out of it: typed schema, stage and profile YAML, run directories. No torch."""
