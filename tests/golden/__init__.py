"""Databases of every version of the format, made once and opened by tests for ever. `python -m tests.golden.make`."""
