"""Processes that are killed, and processes that read beside a writer."""
