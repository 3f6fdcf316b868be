"""The commands of `python -m vast`. What they decide is in the modules beside this package; here are words and options."""
