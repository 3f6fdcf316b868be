"""The input and the output of a run: typed schema, stage and profile YAML, run directories. No torch."""
