"""The formats of vector files, one module each; see vectors.py for what a module has."""
