"""The commands of `python -m app`. Heavy imports stay inside them, so that --help and a mistake are instant."""
