"""Fettle's data plane: `python -m fettle_trainer --help`."""
