"""Faults injected in every call that changes the disk, pulled plugs, and damaged bytes."""
